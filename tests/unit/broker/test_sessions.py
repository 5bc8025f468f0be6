import base64
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from antechamber.broker.sessions import PER_GUEST, PER_PEER, SPENT_S, Attested, Session, Sessions, origin
from antechamber.errors import BrokerDenied
from antechamber.evidence.eventlog import DOMAIN, AaelEvent

PEER = "192.0.2.1"


def attested(
    token_id: str = "t", expires: int = 1000, *, tls: str = "", phase: str = "boot", policy: str | None = "demo"
) -> Attested:
    events = (AaelEvent(DOMAIN, "tls", f"sha384:{tls or token_id}"),)
    verified = SimpleNamespace(events=events, phase=phase)
    return Attested(cast(Any, verified), {}, "token", token_id, expires, "", policy)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(BrokerDenied) as refused:
        call()
    return refused.value.code


def test_session_goes_from_unattested_to_attested_to_spent() -> None:
    sessions = Sessions(300)
    session = sessions.open(0, PEER)
    assert session.state == "unattested"
    assert code_of(session.require) == "session.unattested"
    sessions.attest(session, attested())
    assert session.state == "attested"
    sessions.spend(session, 0)
    assert session.state == "spent"
    assert code_of(session.require) == "session.spent"
    assert code_of(lambda: sessions.spend(session, 0)) == "session.spent"


def test_nonce_is_32_fresh_bytes() -> None:
    sessions = Sessions(300)
    nonces = {sessions.open(0, PEER).nonce for _ in range(20)}
    assert len(nonces) == 20
    assert {len(base64.b64decode(n)) for n in nonces} == {32}


def test_session_is_unknown_after_its_time() -> None:
    sessions = Sessions(300)
    session = sessions.open(0, PEER)
    assert sessions.find(session.id, 299) is session
    assert code_of(lambda: sessions.find(session.id, 300)) == "session.unknown"
    assert code_of(lambda: sessions.find("other", 0)) == "session.unknown"


def test_token_outlives_its_session_but_not_its_own_time() -> None:
    sessions = Sessions(300)
    session = sessions.open(0, PEER)
    sessions.attest(session, attested("t", 590))
    sessions.open(400, PEER)  # sweeps
    assert sessions.find_token("t", 589) is session
    assert code_of(lambda: sessions.find_token("t", 590)) == "session.token"
    sessions.open(591, PEER)
    assert code_of(lambda: sessions.find_token("t", 0)) == "session.token"
    assert len(sessions) == 2


def test_session_is_attested_once() -> None:
    sessions = Sessions(300)
    session = sessions.open(0, PEER)
    sessions.attest(session, attested())
    assert code_of(lambda: sessions.attest(session, attested("u"))) == "session.state"


def test_evicted_session_is_not_attested() -> None:
    sessions = Sessions(300, limit=1)
    session = sessions.open(0, PEER)
    sessions.open(0, PEER)
    assert code_of(lambda: sessions.attest(session, attested())) == "session.unknown"


def test_full_of_attested_sessions_refuses_another() -> None:
    sessions = Sessions(300, limit=2)
    for token_id in "ab":
        sessions.attest(sessions.open(0, PEER), attested(token_id))
    assert code_of(lambda: sessions.open(0, PEER)) == "session.full"
    assert len(sessions) == 2


def test_spend_lets_one_of_many_threads_through() -> None:
    sessions = Sessions(300)
    session = sessions.open(0, PEER)
    sessions.attest(session, attested())
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


def test_address_pushes_out_its_own_and_its_contraindicated_first() -> None:
    sessions = Sessions(300)
    stranger = sessions.open(0, "192.0.2.9")
    first, second = sessions.open(0, PEER), sessions.open(0, PEER)
    sessions.attest(second, attested(policy=None))
    for _ in range(PER_PEER - 2):
        sessions.open(0, PEER)
    sessions.open(0, PEER)
    assert code_of(lambda: sessions.find(second.id, 0)) == "session.unknown"
    assert sessions.find(first.id, 0) is first
    sessions.open(0, PEER)
    assert code_of(lambda: sessions.find(first.id, 0)) == "session.unknown"
    assert sessions.find(stranger.id, 0) is stranger
    assert len(sessions) == PER_PEER + 1


def test_full_table_drops_of_the_address_that_has_most() -> None:
    sessions = Sessions(300, limit=4)
    affirming, pending = sessions.open(0, PEER), sessions.open(0, PEER)
    sessions.attest(affirming, attested())
    for _ in range(100):
        sessions.open(0, "198.51.100.7")
    assert sessions.find(affirming.id, 0) is affirming
    assert sessions.find(pending.id, 0) is pending
    assert len(sessions) == 4


def test_guest_has_few_affirming_sessions() -> None:
    sessions = Sessions(300)
    for i in range(PER_GUEST * 2):
        sessions.attest(sessions.open(0, PEER), attested(str(i), tls="aa", phase="released"))
    assert len(sessions) == PER_GUEST


def test_spend_ends_every_boot_session_of_that_tls_key_and_no_other() -> None:
    sessions = Sessions(300)
    spent, twin, other, serving, late = (sessions.open(0, PEER) for _ in range(5))
    sessions.attest(spent, attested("a", tls="aa"))
    sessions.attest(twin, attested("b", tls="aa"))
    sessions.attest(other, attested("c", tls="cc"))
    sessions.attest(serving, attested("d", tls="aa", phase="released"))
    sessions.spend(spent, 0)
    assert code_of(twin.require) == "session.spent"
    assert (other.state, serving.state) == ("attested", "attested")
    assert code_of(lambda: sessions.attest(late, attested("e", tls="aa"))) == "session.spent"
    later = sessions.open(SPENT_S - 1, PEER)
    assert code_of(lambda: sessions.attest(later, attested("f", tls="aa"))) == "session.spent"
    after = sessions.open(SPENT_S, PEER)
    sessions.attest(after, attested("g", tls="aa"))


def test_token_of_a_serving_guest_is_no_credential() -> None:
    sessions = Sessions(300)
    session = sessions.open(0, PEER)
    sessions.attest(session, attested("t", phase="released"))
    assert code_of(lambda: sessions.find_token("t", 0)) == "session.token"


@pytest.mark.parametrize(
    ("peer", "counted"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::/64"), ("2001:db8::ffff:2", "2001:db8::/64"),
     ("::ffff:192.0.2.1", "192.0.2.1"), ("fe80::1%eth0", "fe80::/64"), ("", "")],
)  # fmt: skip
def test_origin_of_ipv6_is_its_network(peer: str, counted: str) -> None:
    assert origin(peer) == counted
