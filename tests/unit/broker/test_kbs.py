"""The client against brokers that say other things than ours."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from antechamber.broker.kbs import Kbs
from antechamber.broker.messages import Challenge, ErrorInformation
from antechamber.broker.transport import Answer
from antechamber.errors import AgentError, BrokerUnreachable, ConfigError
from antechamber.evidence.composite import CompositeEvidence

NONCE = "DJE9yXUVaLtacTf+DznMn5CYrb76/vWJLuFHCxKs49s="
EVIDENCE = CompositeEvidence(b"quote", None, "")
COOKIE = "kbs-session-id=0123456789abcdef; Expires=Thu, 01 Jan 1970 00:05:00 GMT"


class FakeWire:
    """A transport whose peer gives scripted answers, and that remembers what was asked."""

    def __init__(self, *answers: Answer, path: str = "") -> None:
        self.answers, self.asked, self.path, self.closed = list(answers), [], path, False

    def exchange(
        self, method: str, path: str, *, headers: dict[str, str], limit: int, body: bytes | None = None
    ) -> Answer:
        self.asked.append((method, path, headers, body))
        return self.answers.pop(0)

    def close(self) -> None:
        self.closed = True


def ok(body: bytes, *cookies: str) -> Answer:
    return Answer(200, {}, cookies, body)


def said(status: int, variant: str, detail: str) -> Answer:
    return Answer(status, {}, (), ErrorInformation(variant, detail).build())


def kbs(*answers: Answer, path: str = "") -> tuple[Kbs, FakeWire]:
    wire = FakeWire(*answers, path=path)
    return Kbs(wire), wire  # type: ignore[arg-type]


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(AgentError) as refused:
        call()
    return refused.value.code


def test_challenge_keeps_the_nonce_and_a_cookie_that_the_hosts_clock_calls_expired() -> None:
    broker, wire = kbs(ok(Challenge(NONCE).build(), COOKIE), ok(b'{"token":"a.b.c"}'), ok(b"{}"))
    assert broker.challenge() == NONCE
    assert broker.attest(NONCE, {"kty": "EC"}, EVIDENCE, None) == "a.b.c"
    assert broker.release("kbs:///a/b/c") == b"{}"
    assert [headers.get("Cookie") for _, _, headers, _ in wire.asked] == [
        None, "kbs-session-id=0123456789abcdef", "kbs-session-id=0123456789abcdef",
    ]  # fmt: skip
    assert json.loads(wire.asked[0][3])["version"] == "0.4.0"
    sent = json.loads(wire.asked[1][3])
    assert sent["init-data"] is None
    assert sent["runtime-data"] == {"nonce": NONCE, "tee-pubkey": {"kty": "EC"}}
    assert wire.asked[2][1] == "/kbs/v0/resource/a/b/c"


def test_challenge_opens_a_new_session_each_time() -> None:
    again = COOKIE.replace("0123", "4567")
    broker, wire = kbs(ok(Challenge(NONCE).build(), COOKIE), ok(Challenge(NONCE).build(), again), ok(b""))
    broker.challenge()
    broker.challenge()
    broker.release("a/b/c")
    assert wire.asked[1][2].get("Cookie") is None
    assert wire.asked[2][2]["Cookie"] == "kbs-session-id=4567456789abcdef"


def test_cookie_follows_a_broker_under_a_path() -> None:
    broker, wire = kbs(ok(Challenge(NONCE).build(), COOKIE), ok(b""), path="/trustee")
    broker.challenge()
    broker.release("a/b/c")
    assert "Cookie" in wire.asked[1][2]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (said(401, "AttestationError", "KBS Client Protocol Version Mismatch: expect =0.1.1"), "broker.version"),
        (said(401, "AttestationError", "no"), "broker.denied"),
        (said(404, "PluginNotFound", "no"), "broker.denied"),
        (Answer(401, {}, (), b"no"), "broker.protocol"),
        (Answer(500, {}, (), b"no"), "broker.unavailable"),
        (said(503, "PluginInternalError", "session.full"), "broker.unavailable"),
        (Answer(302, {}, (), b""), "broker.protocol"),
        (Answer(201, {}, (COOKIE,), Challenge(NONCE).build()), "broker.protocol"),
        (ok(Challenge(NONCE).build()), "broker.protocol"),
        (ok(b"{}", COOKIE), "broker.protocol"),
    ],
)
def test_challenge_refuses(answer: Answer, code: str) -> None:
    broker, _ = kbs(answer)
    assert code_of(broker.challenge) == code


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda b: b.attest(NONCE, {}, EVIDENCE, None), "broker.attest"),
        (lambda b: b.release("a/b/c"), "broker.resource"),
        (lambda b: b.certify(b"der"), "broker.denied"),
        (lambda b: b.lease(), "broker.denied"),
        (lambda b: b.collateral(bytes(32)), "broker.denied"),
    ],
)
def test_a_denial_has_its_code_and_the_brokers_words(call: Callable[[Kbs], Any], code: str) -> None:
    broker, _ = kbs(said(401, "PolicyDeny", "because\x1b[31m\nof this"))
    with pytest.raises(AgentError) as refused:
        call(broker)
    assert refused.value.code == code
    assert refused.value.detail == "PolicyDeny: because?[31m?of this"  # a peer's text is no terminal's command


LOST = "Attestation error: RCAR handshake Attest failed: session.unknown: no such session"


@pytest.mark.parametrize(
    ("variant", "detail", "code"),
    [
        ("AttestationError", LOST, "broker.session"),
        ("AttestationError", LOST.replace("unknown", "none"), "broker.session"),
        ("TokenVerifierError", "Token Verifier error: session.unknown: no such session", "broker.session"),
        ("TokenVerifierError", "Token Verifier error: session.expired: over", "broker.session"),
        ("TokenVerifierError", "Token Verifier error: session.spent: over", "broker.attest"),
        ("TokenVerifierError", "Token Verifier error", "broker.session"),  # Trustee's words, of a token that is over
        ("TokenNotFound", "Attestation Token not found", "broker.session"),  # Trustee's words
        ("AttestationError", LOST.replace("unknown", "spent"), "broker.attest"),
        ("AttestationError", "Attestation error: RCAR handshake Attest failed", "broker.attest"),  # Trustee's, for all
        ("AttestationError", LOST.replace("session.unknown", "appraisal.x: session.unknown"), "broker.attest"),
    ],
)
def test_a_lost_session_is_no_verdict(variant: str, detail: str, code: str) -> None:
    broker, _ = kbs(said(401, variant, detail))
    with pytest.raises(AgentError) as refused:
        broker.attest(NONCE, {}, EVIDENCE, None)
    assert refused.value.code == code
    assert isinstance(refused.value, BrokerUnreachable) == (code == "broker.session")


def test_attest_refuses_a_token_that_is_none() -> None:
    broker, _ = kbs(ok(b'{"token":"not a token"}'))
    assert code_of(lambda: broker.attest(NONCE, {}, EVIDENCE, None)) == "broker.protocol"


def test_release_refuses_a_path_before_it_asks() -> None:
    broker, wire = kbs()
    with pytest.raises(ConfigError):
        broker.release("kbs:///../../admin")
    assert wire.asked == []


def test_close_forgets_the_session() -> None:
    broker, wire = kbs(ok(Challenge(NONCE).build(), COOKIE), ok(b""))
    broker.challenge()
    broker.close()
    broker.release("a/b/c")
    assert wire.closed
    assert "Cookie" not in wire.asked[1][2]
