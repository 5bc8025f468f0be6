import copy
import pickle

import pytest

from antechamber.secret import Secret


def test_secret_is_zeroed_when_it_was_lent() -> None:
    raw = bytearray(b"key")
    secret = Secret(raw)
    with secret as lent:
        assert bytes(lent) == b"key"
        assert lent.readonly
    assert raw == bytes(3)
    with pytest.raises(RuntimeError), secret:
        pass


def test_secret_never_shows_when_it_is_printed() -> None:
    secret = Secret(bytearray(b"canary"))
    assert "canary" not in f"{secret!r}{secret!s}"


@pytest.mark.parametrize("spread", [pickle.dumps, copy.copy, copy.deepcopy])
def test_secret_refuses_when_it_would_be_copied(spread) -> None:
    with pytest.raises(TypeError):
        spread(Secret(bytearray(b"key")))
