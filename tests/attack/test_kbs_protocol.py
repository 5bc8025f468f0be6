"""What the KBS protocol lets a client or a broker try: one test a threat, with the code that refuses it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import KEY, MODEL_KEY, PREFIX, Clock, Rig, auth_body, cookie_of, running
from cryptography.hazmat.primitives.asymmetric import rsa

from antechamber.broker.jwe import TeeKey
from antechamber.broker.messages import Attestation, ErrorInformation
from antechamber.errors import BrokerDenied

ANY = f"{PREFIX}/resource/default/any/1"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running(tmp_path / "broker") as rig:
        yield rig


def said(answer: tuple[int, dict[str, str], bytes]) -> str:
    error = ErrorInformation.parse(answer[2])
    return f"{answer[0]} {error.variant}: {error.detail}"


def attested(rig: Rig) -> tuple[TeeKey, str, str]:
    """A guest's key, cookie and token."""
    guest = rig.guest()
    _, headers, body = rig.raw("POST", PREFIX + "/auth", auth_body())
    nonce, cookie = json.loads(body)["nonce"], cookie_of(headers)
    sent = Attestation.of(nonce, guest.tee.public_jwk, guest.evidence(nonce), None).build()
    status, _, body = rig.raw("POST", PREFIX + "/attest", sent, Cookie=cookie)
    assert status == 200, body
    return guest.tee, cookie, json.loads(body)["token"]


def test_session_that_outlives_its_token_gives_nothing_for_old_evidence(tmp_path: Path) -> None:
    """`session_minutes: 60`, and a guest that was broken into long after it attested."""
    clock = Clock()
    with running(tmp_path / "broker", clock=clock, session_minutes=60) as rig:
        _, cookie, token = attested(rig)
        assert rig.raw("GET", ANY, Cookie=cookie)[0] == 200
        clock.ahead = 301
        assert "401 TokenVerifierError: Token Verifier error: session.expired" in said(
            rig.raw("GET", ANY, Cookie=cookie)
        )
        assert "ear.expired" in said(rig.raw("GET", ANY, Authorization=f"Bearer {token}"))
        assert "session.expired" in said(rig.raw("GET", PREFIX + "/external/antechamber/lease", Cookie=cookie))


def test_cookie_counts_before_a_stolen_token(rig: Rig) -> None:
    """A thief's own session with another's token: what is released is sealed to the thief's own, attested key."""
    victim, _, token = attested(rig)
    thief, cookie, _ = attested(rig)
    status, _, body = rig.raw("GET", ANY, Cookie=cookie, Authorization=f"Bearer {token}")
    assert status == 200
    with thief.open(body) as plain:
        assert bytes(plain) == KEY
    with pytest.raises(BrokerDenied, match=r"broker\.jwe"):
        victim.open(body)


def test_stolen_token_is_of_no_use_without_the_victims_key(rig: Rig) -> None:
    victim, _, token = attested(rig)
    _, headers, _ = rig.raw("POST", PREFIX + "/auth", auth_body())
    status, _, body = rig.raw("GET", ANY, Cookie=cookie_of(headers), Authorization=f"Bearer {token}")
    assert status == 200
    with pytest.raises(BrokerDenied, match=r"broker\.jwe"):
        TeeKey.generate().open(body)
    with victim.open(body) as plain:
        assert bytes(plain) == KEY


@pytest.mark.parametrize("alg", ["RSA1_5", "RSA-OAEP", "RSA-OAEP-256 "])
def test_weak_algorithm_is_refused_before_anything_is_sealed(rig: Rig, alg: str) -> None:
    guest = rig.guest()
    key = TeeKey(rsa.generate_private_key(65537, 2048))
    jwk = key.public_jwk | {"alg": alg}
    _, headers, body = rig.raw("POST", PREFIX + "/auth", auth_body())
    nonce = json.loads(body)["nonce"]
    sent = Attestation.of(nonce, jwk, guest.evidence(nonce), None).build()
    assert "kbs.pubkey" in said(rig.raw("POST", PREFIX + "/attest", sent, Cookie=cookie_of(headers)))


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/resource-policy"), ("POST", "/attestation-policy"), ("POST", "/reference-value"),
     ("GET", "/resource-policy"), ("GET", "/reference-value/mr_td"), ("POST", f"/resource/{MODEL_KEY}"),
     ("DELETE", f"/resource/{MODEL_KEY}")],
)  # fmt: skip
def test_guests_token_administers_nothing(rig: Rig, method: str, path: str) -> None:
    _, cookie, token = attested(rig)
    answer = rig.raw(method, PREFIX + path, b"{}", Cookie=cookie, Authorization=f"Bearer {token}")
    assert "AdminAuthAccess" in said(answer)
    assert "admin.token" in said(answer)


def test_other_method_of_a_resource_changes_nothing(rig: Rig) -> None:
    _, cookie, _ = attested(rig)
    before = rig.raw("GET", ANY, Cookie=cookie)[0]
    assert "kbs.method" in said(rig.raw("PUT", ANY, b"mine", Cookie=cookie))
    assert (before, rig.raw("GET", ANY, Cookie=cookie)[0]) == (200, 200)
