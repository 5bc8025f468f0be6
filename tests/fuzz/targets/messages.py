"""The messages of the KBS protocol, both directions. The first byte says which one; the rest is its text."""

import base64
import json
from collections.abc import Callable

from fuzz.contract import NOW, VECTORS, Target
from fuzz.mutation import Mutator

from antechamber.broker.jwe import TeeKey, seal
from antechamber.broker.messages import (
    Attestation,
    Challenge,
    Cookie,
    ErrorInformation,
    Request,
    Response,
    b64url,
    build_token,
    parse_path,
    parse_pubkey,
    parse_token,
)
from antechamber.broker.sessions import Sessions
from antechamber.evidence import initdata
from antechamber.evidence.composite import CompositeEvidence, device_nonce, report_data

SESSIONS = Sessions(300)


def _request(raw: bytes) -> None:
    one = Request.parse(raw)
    assert Request.parse(one.build()) == one


def _challenge(raw: bytes) -> None:
    one = Challenge.parse(raw)
    assert Challenge.parse(one.build()) == one
    assert len(base64.b64decode(one.nonce, validate=True)) == 32


def _attestation(raw: bytes) -> None:
    """As the broker reads it: the digests that bind it, the Evidence inside, a key to seal to."""
    one = Attestation.parse(raw)
    assert Attestation.parse(one.build()) == one
    assert len(report_data(one.nonce, one.pubkey, one.additional)) == 64
    assert len(device_nonce(one.nonce, one.pubkey)) == 32
    if one.init_data is not None:
        initdata.parse(one.init_data.encode())
    seal(one.pubkey, b"key")
    evidence = CompositeEvidence.from_kbs(one.primary, one.additional)
    assert CompositeEvidence.from_kbs(evidence.primary(), evidence.additional) == evidence
    evidence.devices()


def _response(raw: bytes) -> None:
    one = Response.parse(raw)
    assert Response.parse(one.build()) == one
    assert isinstance(one.header(), dict)


def _error(raw: bytes) -> None:
    one = ErrorInformation.parse(raw)
    assert ErrorInformation.parse(one.build()) == one


def _token(raw: bytes) -> None:
    token = parse_token(raw)
    assert parse_token(build_token(token)) == token


def _path(raw: bytes) -> None:
    path = parse_path(raw.decode("utf-8", "surrogateescape"))
    assert parse_path(path) == path == parse_path("kbs:///" + path)
    assert path.count("/") == 2
    assert not {"", ".", ".."} & set(path.split("/"))


def _cookie(raw: bytes) -> None:
    header = raw.decode("latin-1")
    cookie = Cookie.parse(header, "/kbs/v0/auth")
    if cookie is not None:
        assert Cookie.parse(cookie.build(), "/kbs/v0/auth") == Cookie(cookie.value, "/kbs/v0")
        assert not set("\r\n; ") & set(cookie.build()), "a header is split"
        cookie.fits("/kbs/v0/attest")


def _session(raw: bytes) -> None:
    """An id that this broker never gave is not found; one that it gave has one spelling."""
    text = raw.decode("latin-1")
    session = SESSIONS.find(text, NOW)
    raise AssertionError(f"a session is found by {text!r}: {session.id}")


def _pubkey(raw: bytes) -> None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return
    key = parse_pubkey(value)
    assert parse_pubkey(key) == key == value
    opened = seal(key, b"key")
    assert Response.parse(opened).header()["alg"] == key["alg"]


KINDS: tuple[tuple[str, Callable[[bytes], None]], ...] = (
    ("request", _request), ("challenge", _challenge), ("attestation", _attestation), ("response", _response),
    ("error", _error), ("token", _token), ("path", _path), ("cookie", _cookie), ("session", _session),
    ("pubkey", _pubkey),
)  # fmt: skip


def run(data: bytes) -> None:
    if data:
        KINDS[data[0] % len(KINDS)][1](data[1:])


def _input(kind: str, text: bytes) -> bytes:
    return bytes([[name for name, _ in KINDS].index(kind)]) + text


def seeds() -> list[bytes]:
    key = TeeKey.generate().public_jwk
    kem = {"alg": "ML-KEM-768+A192KW", "kty": "AKP", "pub": b64url(bytes(1184))}
    rsa = {"alg": "RSA-OAEP-256", "kty": "RSA", "n": "_" * 341 + "w", "e": "AQAB"}
    nonce = base64.b64encode(bytes(32)).decode()
    device = {"arch": "HOPPER", "uuid": "GPU-0", "evidence": "AAAA", "certificate": "AAAA"}
    additional = json.dumps({"nvidia": {"device_evidence_list": [device]}})
    evidence = CompositeEvidence(b"quote", b"log", additional)
    toml = 'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n'
    selected = {"selected-hash-algorithm": "sha384"}
    attestation = Attestation.of(nonce, key, evidence, toml)
    return [
        _input("request", Request("0.4.0", "tdx").build()),
        _input("challenge", Challenge(nonce).build()),
        _input("challenge", json.dumps({"nonce": nonce, "extra-params": selected}).encode()),
        _input("attestation", attestation.build()),
        _input("attestation", Attestation.of(nonce, key, CompositeEvidence(b"quote", None, ""), None).build()),
        _input("response", seal(key, b"key")),
        _input("error", ErrorInformation("PolicyDeny", "Access denied by policy").build()),
        _input("token", build_token("aa.bb.cc")),
        _input("path", b"kbs:///default/key/model"),
        _input("cookie", b"kbs-session-id=0123abc; Path=/kbs/v0; HttpOnly; Expires=Thu, 01 Jan 1970 00:00:00 GMT"),
        _input("session", b"0" * 112),
        _input("session", SESSIONS.open(NOW - 301).id.encode()),
        _input("pubkey", json.dumps(key).encode()),
        _input("pubkey", json.dumps(rsa).encode()),
        _input("pubkey", json.dumps(kem).encode()),
    ]  # fmt: skip


def vectors() -> list[bytes]:
    transcript = VECTORS / "kbs" / "transcript_sample_v040.json"
    runtime = VECTORS / "kbs" / "runtime_data.json"
    found = []
    for path in (transcript, runtime):
        if path.is_file():
            found += [_input(kind, path.read_bytes()[:8000]) for kind in ("attestation", "request")]
    return found


def mutate(m: Mutator, data: bytes) -> bytes:
    if not data[1:].lstrip().startswith(b"{"):
        return data[:1] + m.text(data[1:].decode("latin-1")).encode("latin-1", "replace")
    changed = m.json(json.loads(data[1:]))
    return data[:1] + json.dumps(changed, ensure_ascii=m.often()).encode("utf-8", "surrogatepass")


WORDS = (
    "AKP", "pub", "ML-KEM-768+A192KW",
    "version", "tee", "tdx", "extra-params", "supported-hash-algorithms", "selected-hash-algorithm", "sha384",
    "nonce", "init-data", "runtime-data", "tee-pubkey", "tee-evidence", "primary_evidence", "additional_evidence",
    "cc_eventlog", "quote", "nvidia", "device_evidence_list", "kty", "crv", "alg", "x", "y", "n", "e", "EC", "RSA",
    "P-256", "P-521", "ECDH-ES+A256KW", "RSA-OAEP-256", "protected", "encrypted_key", "iv", "ciphertext", "tag",
    "aad", "type", "detail", "token", "kbs:///", "kbs-session-id=", "; Path=", "format", "toml", "body", "../", "%2e",
    "NaN", "Infinity", "1e999", "\\u0000", "\\ud800",
)  # fmt: skip
TARGET = Target(
    name="messages", run=run, seeds=seeds, mutate=mutate, words=WORDS, max_len=1 << 15, vectors=vectors
)  # fmt: skip
