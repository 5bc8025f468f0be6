import base64
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antechamber.broker.sessions import (
    PER_GUEST,
    PER_PEER,
    SPENT_S,
    Attested,
    Contraindicated,
    Session,
    Sessions,
    origin,
)
from antechamber.errors import AgentError, BrokerDenied
from antechamber.evidence.eventlog import DOMAIN, AaelEvent

PEER = "192.0.2.1"
SESSIONS = Sessions(300)


def attested(token_id: str = "t", expires: int = 1000, *, tls: str = "", phase: str = "boot") -> Attested:
    events = (AaelEvent(DOMAIN, "tls", f"sha384:{tls or token_id}"),)
    verified = SimpleNamespace(events=events, phase=phase)
    return Attested(cast(Any, verified), {}, "token", token_id, expires, "")


def contraindicated(token_id: str = "t", expires: int = 1000) -> Contraindicated:
    return Contraindicated("appraisal.mr-td", "mr_td is 1, not 2", token_id, expires, "")


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(AgentError) as refused:
        call()
    return refused.value.code


def test_session_goes_from_unattested_to_attested_to_spent() -> None:
    sessions = Sessions(300)
    session = sessions.open(0)
    assert session.state == "unattested"
    assert code_of(lambda: session.require(0)) == "session.unattested"
    sessions.attest(session, attested(), 0, PEER)
    assert session.state == "attested"
    sessions.spend(session, 0)
    assert session.state == "spent"
    assert code_of(lambda: session.require(0)) == "session.spent"
    assert code_of(lambda: sessions.spend(session, 0)) == "session.spent"


def test_session_that_outlives_its_token_gives_nothing_more() -> None:
    """Sessions may last an hour, Evidence counts for as long as its token."""
    sessions = Sessions(3600)
    for result in (attested(expires=300), contraindicated("c", expires=300)):
        session = sessions.open(0)
        sessions.attest(session, result, 0, PEER)
        found = sessions.find(session.id, 300)
        assert code_of(lambda found=found: found.require(300)) == "session.expired"
        assert code_of(lambda session=session: sessions.spend(session, 300)) == "session.expired"


def test_nonce_is_32_fresh_bytes() -> None:
    sessions = Sessions(300)
    nonces = {sessions.open(0).nonce for _ in range(20)}
    assert len(nonces) == 20
    assert {len(base64.b64decode(n)) for n in nonces} == {32}


def test_session_is_unknown_after_its_time_and_in_another_process() -> None:
    sessions = Sessions(300)
    session = sessions.open(0)
    assert sessions.find(session.id, 299) == session
    assert code_of(lambda: sessions.find(session.id, 300)) == "session.unknown"
    assert code_of(lambda: Sessions(300).find(session.id, 0)) == "session.unknown"


def test_id_is_ours_in_one_spelling_alone() -> None:
    sessions = Sessions(300)
    good = sessions.open(0).id
    later = good[:32] + (1 << 40).to_bytes(8, "big").hex() + good[48:]
    others = [good.upper(), " " + good, good[:2] + " " + good[2:], good + "00", good[:-2], good[:-2] + "zz", later]
    flipped = [
        f"{i ^ 1:02x}".join([good[:at], good[at + 2 :]])
        for at in (0, 46, 48, 110)
        for i in [int(good[at : at + 2], 16)]
    ]
    for wrong in ["", "0" * 32, "0" * 112, "\u00e9", *others, *flipped]:
        assert wrong != good
        assert code_of(lambda wrong=wrong: sessions.find(wrong, 0)) == "session.unknown", wrong  # type: ignore[misc]


@given(st.text(max_size=120) | st.text("0123456789abcdef", min_size=112, max_size=112))
def test_any_id_is_unknown(text: str) -> None:
    assert code_of(lambda: SESSIONS.find(text, 0)) == "session.unknown"


def test_flood_of_challenges_stores_nothing() -> None:
    sessions = Sessions(300, limit=1)
    pending = sessions.open(0)
    for _ in range(1000):
        sessions.open(0)
    assert len(sessions) == 0
    sessions.attest(sessions.find(pending.id, 299), attested(), 299, PEER)
    assert sessions.find(pending.id, 299).state == "attested"


def test_token_outlives_its_session_but_not_its_own_time() -> None:
    sessions = Sessions(300)
    session, other, third = (sessions.open(at) for at in (0, 400, 591))
    sessions.attest(session, attested("t", 590), 0, PEER)
    sessions.attest(other, attested("u"), 400, PEER)  # sweeps
    assert sessions.find_token("t", 589) is session
    assert code_of(lambda: sessions.find_token("t", 590)) == "session.token"
    sessions.attest(third, attested("v"), 591, PEER)
    assert code_of(lambda: sessions.find_token("t", 0)) == "session.token"
    assert len(sessions) == 2


def test_session_is_attested_once() -> None:
    sessions = Sessions(300)
    first, second = (sessions.find(i, 0) for i in [sessions.open(0).id] * 2)  # two requests at once
    sessions.attest(first, attested(), 0, PEER)
    assert code_of(lambda: sessions.attest(second, attested("u"), 0, PEER)) == "session.state"
    sessions.spend(first, 0)
    assert code_of(lambda: sessions.attest(second, attested("u"), 0, PEER)) == "session.state"
    assert code_of(lambda: sessions.find(second.id, 0).require(0)) == "session.spent"


def test_contraindicated_session_says_why_and_may_be_attested_again() -> None:
    sessions = Sessions(300)
    session = sessions.open(0)
    sessions.attest(session, contraindicated("t"), 0, PEER)
    found = sessions.find_token("t", 0)
    assert (found, found.state, code_of(lambda: found.require(0))) == (session, "unattested", "appraisal.mr-td")
    sessions.attest(sessions.find(session.id, 0), contraindicated("u"), 0, PEER)
    assert code_of(lambda: sessions.find_token("t", 0)) == "session.token"
    sessions.attest(sessions.find(session.id, 0), attested("v"), 0, PEER)
    assert sessions.find(session.id, 0).require(0).token_id == "v"
    assert len(sessions) == 1


def test_full_of_attested_sessions_refuses_another() -> None:
    sessions = Sessions(300, limit=2)
    for token_id in "ab":
        sessions.attest(sessions.open(0), attested(token_id), 0, PEER)
    for result in (attested("c"), contraindicated("c")):
        assert code_of(lambda r=result: sessions.attest(sessions.open(0), r, 0, PEER)) == "session.full"  # type: ignore[misc]
    assert len(sessions) == 2


def test_spend_lets_one_of_many_threads_through() -> None:
    sessions = Sessions(300)
    session = sessions.open(0)
    sessions.attest(session, attested(), 0, PEER)
    won: list[Session] = []
    start = threading.Barrier(8)

    def race() -> None:
        start.wait()
        try:
            sessions.spend(session, 0)
        except BrokerDenied:
            return
        won.append(session)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_address_pushes_out_its_own_contraindicated_ones() -> None:
    sessions = Sessions(300)
    affirming, stranger, first, second = (sessions.open(0) for _ in range(4))
    sessions.attest(affirming, attested("a"), 0, PEER)
    sessions.attest(stranger, contraindicated("s"), 0, "192.0.2.9")
    sessions.attest(first, contraindicated("1"), 0, PEER)
    sessions.attest(second, contraindicated("2"), 0, PEER)
    for i in range(PER_PEER - 1):
        sessions.attest(sessions.open(0), contraindicated(f"x{i}"), 0, PEER)
    assert code_of(lambda: sessions.find_token("1", 0)) == "session.token"
    assert sessions.find_token("2", 0) is second
    assert sessions.find_token("s", 0) is stranger
    assert sessions.find_token("a", 0) is affirming
    assert len(sessions) == PER_PEER + 2


def test_full_table_drops_a_contraindicated_one_of_the_address_that_has_most() -> None:
    sessions = Sessions(300, limit=4)
    affirming, alone, mine = (sessions.open(0) for _ in range(3))
    sessions.attest(affirming, attested("a"), 0, PEER)
    sessions.attest(alone, contraindicated("b"), 0, PEER)
    for i in range(100):
        sessions.attest(sessions.open(0), contraindicated(f"x{i}"), 0, "198.51.100.7")
    sessions.attest(mine, attested("c"), 0, PEER)
    assert [sessions.find_token(t, 0) for t in "abc"] == [affirming, alone, mine]
    assert len(sessions) == 4


def test_guest_has_few_affirming_sessions() -> None:
    sessions = Sessions(300)
    for i in range(PER_GUEST * 2):
        sessions.attest(sessions.open(0), attested(str(i), tls="aa", phase="released"), 0, PEER)
    assert len(sessions) == PER_GUEST


def test_spend_ends_every_boot_session_of_that_tls_key_and_no_other() -> None:
    sessions = Sessions(300)
    spent, twin, other, serving, late = (sessions.open(0) for _ in range(5))
    sessions.attest(spent, attested("a", tls="aa"), 0, PEER)
    sessions.attest(twin, attested("b", tls="aa"), 0, PEER)
    sessions.attest(other, attested("c", tls="cc"), 0, PEER)
    sessions.attest(serving, attested("d", tls="aa", phase="released"), 0, PEER)
    sessions.spend(spent, 0)
    assert code_of(lambda: twin.require(0)) == "session.spent"
    assert (other.state, serving.state) == ("attested", "attested")
    assert code_of(lambda: sessions.attest(late, attested("e", tls="aa"), 0, PEER)) == "session.spent"
    sessions.attest(sessions.open(0), attested("f", tls="dd"), SPENT_S - 1, PEER)  # sweeps
    assert code_of(lambda: sessions.attest(late, attested("g", tls="aa"), SPENT_S - 1, PEER)) == "session.spent"
    sessions.attest(sessions.open(0), attested("h", tls="dd"), SPENT_S, PEER)
    sessions.attest(late, attested("i", tls="aa"), SPENT_S, PEER)


def test_spent_sessions_take_no_room_and_keep_little() -> None:
    sessions = Sessions(300, limit=2)
    for i in range(20):
        session = sessions.open(0)
        sessions.attest(session, attested(str(i)), 0, PEER)
        sessions.spend(session, 0)
        assert len(sessions) == 0
        assert session.attested is None
        for found in (sessions.find(session.id, 0), sessions.find_token(str(i), 0)):
            assert code_of(lambda found=found: found.require(0)) == "session.spent"  # type: ignore[misc]


def test_spent_session_that_is_forgotten_is_of_a_boot_that_is_not() -> None:
    sessions = Sessions(300, limit=2)
    first = sessions.open(0)
    sessions.attest(first, attested("first"), 0, PEER)
    sessions.spend(first, 0)
    for i in range(16):
        session = sessions.open(0)
        sessions.attest(session, attested(str(i)), 0, PEER)
        sessions.spend(session, 0)
    forgotten = sessions.find(first.id, 0)
    assert code_of(lambda: forgotten.require(0)) == "session.unattested"
    assert code_of(lambda: sessions.find_token("first", 0)) == "session.token"
    assert code_of(lambda: sessions.attest(forgotten, attested("x", tls="first"), 0, PEER)) == "session.spent"


def test_boots_that_an_earlier_run_spent_are_forgotten_in_the_order_of_their_time() -> None:
    sessions = Sessions(300, spent={"sha384:late": 100, "sha384:early": 0})
    sessions.attest(sessions.open(SPENT_S), attested("a"), SPENT_S, PEER)  # sweeps
    sessions.attest(sessions.open(SPENT_S), attested("b", tls="early"), SPENT_S, PEER)
    late = sessions.open(SPENT_S)
    assert code_of(lambda: sessions.attest(late, attested("c", tls="late"), SPENT_S, PEER)) == "session.spent"


def test_token_of_a_serving_guest_is_no_credential() -> None:
    sessions = Sessions(300)
    session = sessions.open(0)
    sessions.attest(session, attested("t", phase="released"), 0, PEER)
    assert code_of(lambda: sessions.find_token("t", 0)) == "session.token"


@pytest.mark.parametrize(
    ("peer", "counted"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::/64"), ("2001:db8::ffff:2", "2001:db8::/64"),
     ("::ffff:192.0.2.1", "192.0.2.1"), ("fe80::1%eth0", "fe80::/64"), ("", "")],
)  # fmt: skip
def test_origin_of_ipv6_is_its_network(peer: str, counted: str) -> None:
    assert origin(peer) == counted
