import base64
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from antechamber.broker.sessions import Attested, Session, Sessions
from antechamber.errors import BrokerDenied


def attested(token_id: str = "t", expires: int = 1000) -> Attested:
    return Attested(cast(Any, None), {}, "token", token_id, expires, "")


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(BrokerDenied) as refused:
        call()
    return refused.value.code


def test_session_goes_from_unattested_to_attested_to_spent() -> None:
    sessions = Sessions(300)
    session = sessions.open(0)
    assert session.state == "unattested"
    assert code_of(session.require) == "session.unattested"
    sessions.attest(session, attested())
    assert session.state == "attested"
    sessions.spend(session)
    assert session.state == "spent"
    assert code_of(session.require) == "session.spent"
    assert code_of(lambda: sessions.spend(session)) == "session.spent"


def test_nonce_is_32_fresh_bytes() -> None:
    sessions = Sessions(300)
    nonces = {sessions.open(0).nonce for _ in range(20)}
    assert len(nonces) == 20
    assert {len(base64.b64decode(n)) for n in nonces} == {32}


def test_session_is_unknown_after_its_time() -> None:
    sessions = Sessions(300)
    session = sessions.open(0)
    assert sessions.find(session.id, 299) is session
    assert code_of(lambda: sessions.find(session.id, 300)) == "session.unknown"
    assert code_of(lambda: sessions.find("other", 0)) == "session.unknown"


def test_token_outlives_its_session_but_not_its_own_time() -> None:
    sessions = Sessions(300)
    session = sessions.open(0)
    sessions.attest(session, attested("t", 590))
    sessions.open(400)  # sweeps
    assert sessions.find_token("t", 589) is session
    assert code_of(lambda: sessions.find_token("t", 590)) == "session.token"
    sessions.open(591)
    assert code_of(lambda: sessions.find_token("t", 0)) == "session.token"
    assert len(sessions) == 2


def test_session_is_attested_once() -> None:
    sessions = Sessions(300)
    session = sessions.open(0)
    sessions.attest(session, attested())
    assert code_of(lambda: sessions.attest(session, attested("u"))) == "session.state"


def test_evicted_session_is_not_attested() -> None:
    sessions = Sessions(300, limit=1)
    session = sessions.open(0)
    sessions.open(0)
    assert code_of(lambda: sessions.attest(session, attested())) == "session.state"


def test_full_of_attested_sessions_refuses_another() -> None:
    sessions = Sessions(300, limit=2)
    for token_id in "ab":
        sessions.attest(sessions.open(0), attested(token_id))
    assert code_of(lambda: sessions.open(0)) == "session.full"
    assert len(sessions) == 2


def test_spend_lets_one_of_many_threads_through() -> None:
    sessions = Sessions(300)
    session = sessions.open(0)
    sessions.attest(session, attested())
    won: list[Session] = []
    start = threading.Barrier(8)

    def race() -> None:
        start.wait()
        try:
            sessions.spend(session)
        except BrokerDenied:
            return
        won.append(session)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
