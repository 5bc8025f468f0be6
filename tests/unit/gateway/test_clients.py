import pytest
from hypothesis import given
from hypothesis import strategies as st

from antechamber.gateway.clients import Shares, client_of


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("", "nonsense", True),
    ],
)
def test_client_is_an_address_or_a_64(one: str, other: str, same: bool) -> None:
    assert (client_of(one) == client_of(other)) is same


@given(st.text(max_size=50))
def test_client_of_takes_any_text(peer: str) -> None:
    assert client_of(client_of(peer).partition("/")[0]) == client_of(peer)


def test_shares_refuse_one_client_more_than_its_share() -> None:
    shares = Shares(3)
    assert [shares.take("a"), shares.take("a", 2), shares.take("a"), shares.take("b", 4)] == [True, True, False, False]
    shares.give_back("a")
    assert shares.take("a")


def test_shares_forget_a_client_that_has_nothing() -> None:
    shares = Shares(1)
    for number in range(1000):
        assert shares.take(str(number))
        assert not shares.take(str(number))
        shares.take("refused", 2)
        shares.give_back(str(number))
    assert not shares._lent
