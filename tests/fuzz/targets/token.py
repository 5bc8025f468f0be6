"""Tokens: the broker's EAR as a Relying Party reads it (first byte even), the owner's admin token (odd)."""

import base64
import json
import warnings

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from fuzz.contract import NOW, VECTORS, Target
from fuzz.mutation import Mutator, unbase64

from antechamber.broker.admin_token import AdminVerifier
from antechamber.broker.messages import b64url
from antechamber.broker.settings import AdminSettings
from antechamber.evidence.ear import EVIDENCE, PROFILE, parse_ear
from antechamber.simulator import authority
from antechamber.simulator.authority import Subject, Window, derive_key
from antechamber.simulator.intel import _utc

_WINDOW = Window(_utc(NOW - 86_400), _utc(NOW + 3650 * 86_400))
CA = authority.issue(
    Subject(name=authority.distinguished_name("tokens"), serial=1, ca=True),
    derive_key(bytes(32), "token/ca", ec.SECP256R1()), None, _WINDOW, SHA256(),
)  # fmt: skip
SIGNER = authority.issue(
    Subject(name=authority.distinguished_name("signer"), serial=2, uses=("digital_signature",)),
    derive_key(bytes(32), "token/signer", ec.SECP256R1()), CA, _WINDOW, SHA256(),
)  # fmt: skip
CA_PEM = authority.pem(CA.certificate)
ADMIN = Ed25519PrivateKey.from_private_bytes(bytes(32))
SETTINGS = AdminSettings(public_key="admin.pub.pem")
VERIFIER = AdminVerifier(ADMIN.public_key(), SETTINGS)


def run(data: bytes) -> None:
    text = data[1:].decode("latin-1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not data or data[0] % 2 == 0:
            _ear(text)
        else:
            _admin(text)


def _ear(text: str) -> None:
    claims = parse_ear(text, CA_PEM, NOW)
    payload = json.loads(_part(text, 1))
    assert claims.expires > NOW, "it is over"
    assert payload["exp"] == claims.expires
    assert payload["jti"] == claims.token_id
    assert json.loads(_part(text, 0))["alg"] == "ES256"
    r, s = (int.from_bytes(half, "big") for half in (_part(text, 2)[:32], _part(text, 2)[32:]))
    signature = authority.utils.encode_dss_signature(r, s)
    SIGNER.key.public_key().verify(signature, text.rpartition(".")[0].encode(), ec.ECDSA(SHA256()))


def _admin(text: str) -> None:
    VERIFIER.require(text, NOW)
    payload = json.loads(_part(text, 1))
    assert payload["exp"] > NOW
    assert payload["iss"] == SETTINGS.issuer
    assert payload["role"] == SETTINGS.role
    assert json.loads(_part(text, 0))["alg"] in ("EdDSA", "Ed25519")
    ADMIN.public_key().verify(_part(text, 2), text.rpartition(".")[0].encode())


def _part(text: str, number: int) -> bytes:
    part = text.split(".")[number]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def header(**changes: object) -> dict[str, object]:
    x5c = [base64.b64encode(i.certificate.public_bytes(Encoding.DER)).decode() for i in (SIGNER, CA)]
    jwk: dict[str, object] = {"kty": "EC", "crv": "P-256", "alg": "ES256", "x5c": x5c}
    return {"typ": "JWT", "alg": "ES256", "jwk": jwk} | changes


def claims(**changes: object) -> dict[str, object]:
    data = {"domain": "antechamber", "operation": "tls", "content": "sha384:aa"}
    tdx = {"uefi_event_logs": [{"index": 4, "details": {"string": "antechamber tls sha384:aa", "data": data}}]}
    cpu = {"ear.status": "affirming", "ear.appraisal-policy-id": "demo", EVIDENCE: {"tdx": tdx}}
    value: dict[str, object] = {
        "eat_profile": PROFILE, "iat": NOW, "exp": NOW + 300, "iss": "broker", "jti": "1", "tee-pubkey": {"kty": "EC"},
        "submods": {"cpu0": cpu, "gpu0": {"ear.status": "affirming"}},
    }  # fmt: skip
    return value | changes


def signed(kind: int, head: object, payload: object) -> bytes:
    """A token by the right key, whatever it says."""
    texts = (json.dumps(part, separators=(",", ":")).encode("utf-8", "replace") for part in (head, payload))
    text = ".".join(map(b64url, texts)).encode()
    signature = ADMIN.sign(text) if kind % 2 else authority.raw_signature(SIGNER.key, SHA256(), text)
    return bytes([kind]) + text + b"." + b64url(signature).encode()


def seeds() -> list[bytes]:
    admin = {"iss": "antechamber", "sub": "admin", "aud": ["KBS"], "role": "admin", "iat": NOW, "exp": NOW + 300}
    head = {"alg": "EdDSA", "typ": "JWT"}
    return [
        signed(0, header(), claims()),
        signed(0, header(), claims(exp=NOW)),
        signed(0, header(alg="none"), claims()),
        signed(1, head, admin),
        signed(1, head, admin | {"nbf": NOW, "aud": "KBS"}),
        signed(1, {"alg": "none"}, admin),
        signed(1, head | {"crit": ["exp"]}, admin),
    ]


def vectors() -> list[bytes]:
    path = VECTORS / "kbs" / "example.token.json"
    found = json.loads(path.read_text()) if path.is_file() else None
    token = found.get("token") if isinstance(found, dict) else None
    return [b"\0" + token.encode()] if isinstance(token, str) else []


def mutate(m: Mutator, data: bytes) -> bytes:
    kind, parts = data[0], data[1:].decode("latin-1").split(".")
    head, payload = (json.loads(unbase64(part + "=" * (-len(part) % 4))) for part in parts[:2])
    match m.random.randrange(5):
        case 0:
            head = m.json(head)
        case 1 if kind % 2 == 0:  # another certificate of the same CA
            chain = list(head["jwk"]["x5c"])
            chain[0] = base64.b64encode(m.certificate(base64.b64decode(chain[0]), CA.key, SHA256())).decode()
            head["jwk"]["x5c"] = chain
        case 2:
            return data[:1] + ".".join(m.text(p) if m.often() else p for p in parts).encode("latin-1", "replace")
        case _:
            payload = m.json(payload)
    return signed(kind, head, payload)


WORDS = (
    "alg", "typ", "jwk", "x5c", "crit", "b64", "kid", "jku", "x5u", "zip", "none", "ES256", "HS256", "EdDSA", "Ed25519",
    "exp", "nbf", "iat", "iss", "aud", "sub", "role", "jti", "KBS", "admin", "antechamber", "eat_profile", "submods",
    "cpu0", "gpu0", "ear.status", "ear.appraisal-policy-id", EVIDENCE, "tdx", "uefi_event_logs", "details", "data",
    "domain", "operation", "content", "affirming", "warning", "tee-pubkey", PROFILE,
)  # fmt: skip
TARGET = Target(
    name="token", run=run, seeds=seeds, mutate=mutate, words=WORDS, max_len=1 << 15, vectors=vectors
)  # fmt: skip
