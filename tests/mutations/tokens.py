"""Tokens: each member of header and payload, signatures, algorithms and keys that a forger would name."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from antechamber.broker.authority import Authority
from antechamber.simulator.authority import raw_signature
from mutations.bodies import Path, at, dump, encode, put, variants, without
from mutations.model import Flow, Good, Mutation, Sent
from mutations.octets import flip

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
HEADER: tuple[Path, ...] = (
    (),
    ("typ",),
    ("alg",),
    ("jwk",),
    *(("jwk", m) for m in ("kty", "crv", "alg", "x", "y", "x5c")),
    ("jwk", "x5c", 0),
    ("jwk", "x5c", 1),
)
_CPU = ("submods", "cpu0")
_EVIDENCE = (*_CPU, "ear.veraison.annotated-evidence")
PAYLOAD: tuple[Path, ...] = (
    (),
    *((m,) for m in ("eat_profile", "iat", "exp", "iss", "jti", "tee-pubkey", "submods")),
    ("tee-pubkey", "x"),
    _CPU,
    (*_CPU, "ear.status"),
    (*_CPU, "ear.appraisal-policy-id"),
    ("submods", "gpu0"),
    _EVIDENCE,
    (*_EVIDENCE, "tdx"),
    (*_EVIDENCE, "runtime_data_claims", "nonce"),
    (*_EVIDENCE, "tdx", "quote"),
    (*_EVIDENCE, "tdx", "uefi_event_logs"),
)
ADMIN_HEADER: tuple[Path, ...] = ((), ("alg",), ("typ",))
ADMIN_PAYLOAD: tuple[Path, ...] = ((), *((m,) for m in ("iss", "sub", "aud", "role", "iat", "exp")), ("aud", 0))
_FIRST = {  # operators that are enough for a member nobody can sign
    "null",
    "zero",
    "minus one",
    "a big number",
    "empty text",
    "an empty list",
    "an empty object",
    "huge text",
    "in a list",
    "NaN",
    "upper case",
    "and a space",
    "twice",
    "half a surrogate pair",
    "with another member",
    "in another order",
    "not JSON",
    "nothing",
    "escaped",
    "nested deep",
    "true",
    "as text of JSON",
}


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def mutations() -> Iterator[Mutation]:
    yield from _kind("token", "release", Good.release_by_token, lambda good: good.token, HEADER, PAYLOAD)
    yield from _kind("admin token", "admin", Good.upload, lambda good: good.admin, ADMIN_HEADER, ADMIN_PAYLOAD)
    yield from _credentials()


def _kind(
    name: str, flow: Flow, send: Any, token: Any, header: tuple[Path, ...], payload: tuple[Path, ...]
) -> Iterator[Mutation]:
    def mutation(what: str, change: Any) -> Mutation:
        return Mutation(
            f"{name}/{what}",
            flow,
            lambda good: send(good, change(good, token(good))),
            lambda good, sent: _same(good, sent, token),
        )

    for index, (part, paths) in enumerate((("header", header), ("payload", payload))):
        shape = _SHAPES[name, part]
        for path in paths:
            field = "/".join(map(str, (part, *path)))
            for operator in variants(at(shape, path)):
                if operator in _FIRST or not path:
                    yield mutation(f"{field}: {operator}", _member(index, path, operator))
            if path:
                yield mutation(f"{field}: left out", _member(index, path, None))
    for what, change in _whole(name).items():
        yield mutation(what, change)
    for at_ in range(64):
        for bit in range(8):
            yield mutation(f"signature: bit {bit} of byte {at_}", _signature(lambda s, a=at_, b=bit: flip(s, a, b)))


def _member(index: int, path: Path, operator: str | None) -> Any:
    def change(good: Good, token: str) -> str:
        parts = token.split(".")
        document = json.loads(unb64(parts[index]))
        made = (
            without(document, path) if operator is None else put(document, path, variants(at(document, path))[operator])
        )
        parts[index] = b64(encode(dump(made)))
        return ".".join(parts)

    return change


def _signature(change: Any) -> Any:
    def changed(good: Good, token: str) -> str:
        head, _, signature = token.rpartition(".")
        return f"{head}.{b64(change(unb64(signature)))}"

    return changed


def _negated(signature: bytes) -> bytes:
    """(r, -s): of an ECDSA signature, another over the same bytes by the same key; of an Ed25519 one, nothing."""
    return signature[:32] + (_ORDER - int.from_bytes(signature[32:], "big") % _ORDER).to_bytes(32, "big")


def _whole(name: str) -> dict[str, Any]:
    signed = {
        "signature: empty": _signature(lambda s: b""),
        "signature: zero": _signature(lambda s: bytes(64)),
        "signature: one too short": _signature(lambda s: s[:-1]),
        "signature: one too long": _signature(lambda s: s + b"\0"),
        "signature: negated": _signature(_negated),
        "signature: its halves swapped": _signature(lambda s: s[32:] + s[:32]),
        "algorithm none, no signature": _alg("none", lambda *_: b""),
        "algorithm None, no signature": _alg("None", lambda *_: b""),
        "algorithm none, the signature": _alg("none", lambda _, s: s),
        "algorithm HS256 with the public key": _alg("HS256", _hmac_public),
        "algorithm HS256 with no key": _alg("HS256", lambda data, _: hmac.digest(b"", data, hashlib.sha256)),
        "algorithm ES384": _alg("ES384", lambda _, s: s),
        "algorithm RS256": _alg("RS256", lambda _, s: s),
        "algorithm EdDSA by a stranger": _alg("EdDSA", lambda data, _: _ED.sign(data)),
        "algorithm ES256 by a stranger": _alg("ES256", lambda data, _: _es256(data)),
        "signed by the key in its own jwk": _own_key(jwk=True, x5c=False),
        "signed by a certificate of its own": _own_key(jwk=False, x5c=True),
        "signed by its own key and certificate": _own_key(jwk=True, x5c=True),
        "kid": _header(kid="../../admin.pub.pem"),
        "jku": _header(jku="https://localhost/keys"),
        "x5u": _header(x5u="https://localhost/chain"),
        "critical extension": _header(crit=["exp"], exp=1),
        "b64 false": _header(b64=False, crit=["b64"]),
        "header of the other kind": lambda good, token: good.admin.partition(".")[0] + "." + token.partition(".")[2],
        "token of the other kind": lambda good, token: good.token if token == good.admin else good.admin,
        "only the header": lambda good, token: token.partition(".")[0],
        "without its signature": lambda good, token: token.rpartition(".")[0],
        "with a fourth part": lambda good, token: token + ".e30",
        "as JWS JSON": lambda good, token: json.dumps(
            dict(zip(("protected", "payload", "signature"), token.split("."), strict=True))
        ),
        "padded": lambda good, token: token + "=",
        "and a line feed inside": lambda good, token: token[:20] + "\\n" + token[20:],
        "in quotes": lambda good, token: f'"{token}"',
        "huge": lambda good, token: token + "A" * 300_000,
        "empty": lambda good, token: ".",
        "reversed": lambda good, token: token[::-1],
    }
    return signed | {
        f"cut to {n} of 16": (lambda good, token, n=n: token[: len(token) * n // 16]) for n in range(1, 16)
    }


def _header(**members: Any) -> Any:
    """Members more in the header, the signature as it was."""

    def change(good: Good, token: str) -> str:
        head, _, rest = token.partition(".")
        return f"{b64(json.dumps(json.loads(unb64(head)) | members).encode())}.{rest}"

    return change


def _alg(name: str, sign: Any) -> Any:
    def change(good: Good, token: str) -> str:
        head, payload, signature = token.split(".")
        head = b64(json.dumps(json.loads(unb64(head)) | {"alg": name}).encode())
        return f"{head}.{payload}.{b64(sign(f'{head}.{payload}'.encode(), unb64(signature)))}"

    return change


_STRANGER, _ED = ec.derive_private_key(7, ec.SECP256R1()), ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))


def _es256(data: bytes) -> bytes:
    return raw_signature(_STRANGER, SHA256(), data)


def _hmac_public(data: bytes, _: bytes) -> bytes:
    pem = _STRANGER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hmac.digest(pem, data, hashlib.sha256)


def _own_key(*, jwk: bool, x5c: bool) -> Any:
    def change(good: Good, token: str) -> str:
        head, payload, _ = token.split(".")
        header = json.loads(unb64(head))
        members = dict(header.get("jwk", {}))
        if jwk:
            numbers = _STRANGER.public_key().public_numbers()
            members |= {
                "kty": "EC",
                "crv": "P-256",
                "x": b64(numbers.x.to_bytes(32, "big")),
                "y": b64(numbers.y.to_bytes(32, "big")),
            }
        if x5c:
            members["x5c"] = [base64.b64encode(c.public_bytes(Encoding.DER)).decode() for c in _stranger_chain()]
        head = b64(json.dumps(header | {"alg": "ES256", "jwk": members}).encode())
        return f"{head}.{payload}.{b64(_es256(f'{head}.{payload}'.encode()))}"

    return change


def _stranger_chain() -> list[x509.Certificate]:
    """Named as the broker's own."""
    authority = Authority.create("Antechamber token CA", now=1_790_000_000)
    leaf = authority.issue(
        _STRANGER.public_key(), "Antechamber tokens", names=(), usage=(), now=1_790_000_000, days=3650
    )
    return [leaf, authority.certificate]


def _same(good: Good, sent: Sent, token: Any) -> bool:
    """The same bytes signed and a signature over them by the same key: base64url's last bits, or (r, -s)."""
    value = next(v for n, v in sent.headers if n == "Authorization").removeprefix("Bearer ")
    head, _, signature = value.rpartition(".")
    true_head, _, true = token(good).rpartition(".")
    if head != true_head or len(signature) != len(true):
        return False
    try:
        seen = unb64(signature)
    except ValueError:
        return False
    return seen == unb64(true) or (token(good) == good.token and seen == _negated(unb64(true)))


_SHAPES: dict[tuple[str, str], Any] = {
    ("token", "header"): {
        "typ": "JWT",
        "alg": "ES256",
        "jwk": {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": "x", "y": "y", "x5c": ["MIIB", "MIIC"]},
    },
    ("token", "payload"): {
        "eat_profile": "tag",
        "iat": 1,
        "exp": 2,
        "iss": "antechamber-broker",
        "jti": "ab",
        "ear.verifier-id": {"developer": "antechamber", "build": "antechamber"},
        "tee-pubkey": {"alg": "a", "crv": "c", "kty": "k", "x": "x", "y": "y"},
        "submods": {
            "cpu0": {
                "ear.status": "affirming",
                "ear.trustworthiness-vector": {},
                "ear.appraisal-policy-id": "demo",
                "ear.veraison.annotated-evidence": {
                    "tdx": {"quote": {}, "uefi_event_logs": [1]},
                    "report_data": "00",
                    "init_data": "00",
                    "runtime_data_claims": {"nonce": "n", "tee-pubkey": {}},
                    "init_data_claims": None,
                },
            },
            "gpu0": {"ear.status": "affirming"},
        },
    },
    ("admin token", "header"): {"alg": "EdDSA", "typ": "JWT"},
    ("admin token", "payload"): {
        "iss": "antechamber-admin",
        "sub": "admin",
        "aud": ["antechamber-kbs"],
        "role": "admin",
        "iat": 1,
        "exp": 2,
    },
}


def _credentials() -> Iterator[Mutation]:
    """How a token is shown."""
    schemes = ("", "Basic ", "Digest ", "Token ", "Bearer: ", "bearer=", "Bearer\t", "Attestation ")
    for scheme in schemes:
        yield Mutation(
            f"token/scheme {scheme!r}",
            "release",
            lambda good, s=scheme: good.release_by_token().having("Authorization", s + good.token),
        )
    for scheme in ("bearer ", "BEARER ", "Bearer  "):
        yield Mutation(
            f"token/scheme {scheme!r}",
            "release",
            lambda good, s=scheme: good.release_by_token().having("Authorization", s + good.token),
            "RFC 9110, 11.1: a scheme has no case, and may be followed by spaces",
        )
    yield Mutation("token/in the query", "release", lambda good: _in_query(good))
    yield Mutation(
        "token/in a cookie", "release", lambda good: good.release().having("Cookie", f"kbs-session-id={good.token}")
    )
    yield Mutation("token/of /attest sent as admin's", "admin", lambda good: good.upload(good.token))
    yield Mutation("token/admin's sent as guest's", "release", lambda good: good.release_by_token(good.admin))


def _in_query(good: Good) -> Sent:
    sent = good.release_by_token().having("Authorization")
    return Sent(sent.method, f"{sent.target}?access_token={good.token[:4000]}", sent.headers)
