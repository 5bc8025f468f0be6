"""A refusal may quote an attacker, and must still be writable: to a log, a console, a database, a peer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antechamber.errors import MAX_DETAIL, AgentError, MalformedEvidence, is_code
from antechamber.model.digest import path_bytes


@given(st.text(st.characters(codec=None), max_size=20), st.integers(0, 3 * MAX_DETAIL))
def test_refusal_is_short_text_whatever_was_seen(seen: str, times: int) -> None:
    error = MalformedEvidence("quote.short", seen + "x" * times, hint="h")
    assert len(error.detail) <= MAX_DETAIL
    assert error.detail.encode().decode() in str(error)


def test_refusal_is_short_when_a_manifest_names_a_long_path() -> None:
    """Found by fuzzing: the whole name went into the refusal, up to the 256 MiB that a manifest may have."""
    with pytest.raises(AgentError) as refused:
        path_bytes("../" + "x" * 100_000)
    assert len(refused.value.detail) <= MAX_DETAIL


@pytest.mark.parametrize(
    ("word", "ours"),
    [("quote.short", True), ("engine.launch.type", True), ("none", False), ("A.b", False), (None, False),
     ("a." + "b" * 99, False), ("a.b\n", False)],
)  # fmt: skip
def test_code_is_told_from_other_words(word: object, ours: bool) -> None:
    assert is_code(word) is ours
