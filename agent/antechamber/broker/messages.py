"""The messages of KBS protocol 0.4.0, both directions, no I/O. Source: Confidential Containers KBS protocol 0.4.0.

What a client sends is read strictly where a digest or a decision depends on it (`Attestation`, `tee-pubkey`); members
that the protocol may still grow (`Request`, `Challenge`, errors) are ignored, as every other implementation does.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from antechamber import strict
from antechamber.errors import MalformedEvidence
from antechamber.evidence.composite import CompositeEvidence

VERSION = "0.4.0"
COOKIE = "kbs-session-id"
PREFIX = "/kbs/v0"
MAX_REQUEST = 64 << 10  # bytes, /auth
MAX_ATTESTATION = 8 << 20  # bytes, /attest: the longest event log and sixteen GPUs fit
MAX_STRUCTURE = 50_000  # of `{[,:` in /attest: few values, and long ones
MAX_RESPONSE = 1 << 20  # bytes, a JWE
MAX_CHALLENGE = 16 << 10  # bytes
ERROR_URL = "https://github.com/confidential-containers/kbs/errors/"

_PUBKEY_MEMBERS = {"EC": {"kty", "crv", "alg", "x", "y"}, "RSA": {"kty", "alg", "n", "e"}, "AKP": {"kty", "alg", "pub"}}
_COORDINATE = {"P-256": 32, "P-521": 66}  # bytes
_RESOURCE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*){2}\Z")
_NONCE = re.compile(r"[A-Za-z0-9+/]{43}=\Z")


def _malformed(code: str, detail: str) -> MalformedEvidence:
    return MalformedEvidence(code, detail, hint="speak KBS protocol 0.4.0")


def _object(raw: bytes, limit: int) -> dict[str, Any]:
    value = strict.load_json(raw, error=MalformedEvidence, family="kbs", limit=limit)
    if not isinstance(value, dict):
        raise _malformed("kbs.shape", f"{type(value).__name__}, not an object")
    return value


def _text(value: Mapping[str, Any], name: str, limit: int = 4096) -> str:
    found = value.get(name)
    if not isinstance(found, str) or len(found) > limit:
        raise _malformed("kbs.shape", f"{name} is not text of at most {limit} characters")
    return found


def _names(members: list[str]) -> str:
    return ", ".join(map(ascii, members))[:100]


def _dump(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def b64url(raw: bytes) -> str:
    """base64url without padding. Source: RFC 7515, 2."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64url(text: object, name: str) -> bytes:
    """Exactly what `b64url` wrote. Raises MalformedEvidence `kbs.base64`."""
    if not isinstance(text, str):
        raise _malformed("kbs.base64", f"{name} is not text")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as e:
        raise _malformed("kbs.base64", f"{name} is not base64url") from e
    if b64url(raw) != text:  # padding, "+/" or left-over bits: one value, one spelling
        raise _malformed("kbs.base64", f"{name} is not canonical base64url")
    return raw


@dataclass(frozen=True, slots=True)
class Request:
    """Body of /auth."""

    version: str
    tee: str

    @classmethod
    def parse(cls, raw: bytes) -> "Request":
        """Raises MalformedEvidence `kbs.json`, `kbs.shape`."""
        value = _object(raw, MAX_REQUEST)
        if "extra-params" not in value:
            raise _malformed("kbs.shape", "extra-params is missing")
        return cls(_text(value, "version", 64), _text(value, "tee", 64))

    def build(self) -> bytes:
        return _dump({
            "version": self.version,
            "tee": self.tee,
            "extra-params": {"supported-hash-algorithms": ["sha384"]},
        })  # fmt: skip


@dataclass(frozen=True, slots=True)
class Challenge:
    """Answer of /auth. `nonce` is kept as text: its exact characters are hashed."""

    nonce: str

    @classmethod
    def parse(cls, raw: bytes) -> "Challenge":
        """Raises MalformedEvidence `kbs.json`, `kbs.shape`, `kbs.nonce`, `kbs.hash`."""
        value = _object(raw, MAX_CHALLENGE)
        nonce, extra = _text(value, "nonce", 64), value.get("extra-params", "")
        if not _NONCE.match(nonce):
            raise _malformed("kbs.nonce", "the nonce is not 32 bytes of standard base64")
        chosen = extra.get("selected-hash-algorithm", "sha384") if isinstance(extra, dict) else "sha384"
        if chosen != "sha384":
            raise _malformed("kbs.hash", f"the broker selects {str(chosen)[:32]!r}, a TDX guest hashes with sha384")
        return cls(nonce)

    def build(self) -> bytes:
        return _dump({"nonce": self.nonce, "extra-params": ""})


def parse_pubkey(value: object) -> dict[str, str]:
    """A `tee-pubkey` with exactly the members that every server hashes.

    A server hashes what it re-serialises: with another member the digests would differ, so it is refused by name.
    Raises MalformedEvidence `kbs.pubkey`, `kbs.base64`.
    """
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise _malformed("kbs.pubkey", "tee-pubkey is not an object of texts")
    members = _PUBKEY_MEMBERS.get(value.get("kty", ""))
    if members is None:
        raise _malformed("kbs.pubkey", f"kty is {str(value.get('kty'))[:16]!r}, not EC, RSA or AKP")
    if wrong := sorted(set(value) ^ members):
        raise _malformed("kbs.pubkey", f"members missing or not allowed: {_names(wrong)}")
    if value["kty"] == "EC":
        _parse_point(value)
    elif value["kty"] == "AKP":
        if value["alg"] != "ML-KEM-768+A192KW" or len(unb64url(value["pub"], "pub")) != 1184:
            raise _malformed("kbs.pubkey", "not ML-KEM-768+A192KW with a key of 1184 bytes")
    elif value["alg"] != "RSA-OAEP-256":
        raise _malformed("kbs.pubkey", f"alg is {value['alg'][:32]!r}, not RSA-OAEP-256")
    elif not 256 <= len(unb64url(value["n"], "n")) <= 1024 or len(unb64url(value["e"], "e")) > 8:
        raise _malformed("kbs.pubkey", "an RSA key has 2048 to 8192 bits")
    return dict(value)


def _parse_point(value: Mapping[str, str]) -> None:
    if value["alg"] != "ECDH-ES+A256KW" or value["crv"] not in _COORDINATE:
        raise _malformed("kbs.pubkey", "not ECDH-ES+A256KW over P-256 or P-521")
    for name in ("x", "y"):
        if len(unb64url(value[name], name)) != _COORDINATE[value["crv"]]:
            raise _malformed("kbs.pubkey", f"{name} is not {_COORDINATE[value['crv']]} bytes")


@dataclass(frozen=True, slots=True)
class Attestation:
    """Body of /attest. `primary` is the TEE's own JSON, unread here; `init_data` the raw TOML text."""

    nonce: str
    pubkey: Mapping[str, str]
    primary: object
    additional: str
    init_data: str | None = None

    @classmethod
    def parse(cls, raw: bytes) -> "Attestation":
        """Raises MalformedEvidence `kbs.*`."""
        _require_few(raw)
        value = _object(raw, MAX_ATTESTATION)
        _only(value, {"init-data", "runtime-data", "tee-evidence"}, "attestation")
        runtime = _only(value.get("runtime-data"), {"nonce", "tee-pubkey"}, "runtime-data")
        evidence = _only(value.get("tee-evidence"), {"primary_evidence", "additional_evidence"}, "tee-evidence")
        additional = _text(evidence, "additional_evidence", MAX_ATTESTATION)
        _require_few(additional.encode())  # \u007b hides one from the first count
        return cls(
            nonce=_text(runtime, "nonce", 64),
            pubkey=parse_pubkey(runtime.get("tee-pubkey")),
            primary=evidence.get("primary_evidence"),
            additional=additional,
            init_data=_init_data(value.get("init-data")),
        )

    @classmethod
    def of(
        cls, nonce: str, pubkey: Mapping[str, str], evidence: CompositeEvidence, init_data: str | None
    ) -> "Attestation":
        return cls(nonce, pubkey, evidence.primary(), evidence.additional, init_data)

    def build(self) -> bytes:
        body = None if self.init_data is None else {"format": "toml", "body": self.init_data}
        return _dump({
            "init-data": body,
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": dict(self.pubkey)},
            "tee-evidence": {"primary_evidence": self.primary, "additional_evidence": self.additional},
        })  # fmt: skip


def _require_few(raw: bytes) -> None:
    """8 MiB of `[{},{},..]` would take hundreds once built, so it is not built."""
    if (found := strict.count_structure(raw)) > MAX_STRUCTURE:
        raise _malformed("kbs.structure", f"{found} of {{[,: in it, at most {MAX_STRUCTURE}")


def _only(value: object, members: set[str], name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed("kbs.shape", f"{name} is not an object")
    if unknown := sorted(set(value) - members):
        raise _malformed("kbs.unknown", f"{name} has {_names(unknown)}")
    return value


def _init_data(value: object) -> str | None:
    if value is None:
        return None
    members = _only(value, {"format", "body"}, "init-data")
    if members.get("format") != "toml":
        raise _malformed("kbs.init-data", "init-data is not toml")
    return _text(members, "body", 1 << 20)


@dataclass(frozen=True, slots=True)
class Response:
    """A sealed answer: flattened JWE. `protected` is kept as received, since it is the AAD. Source: RFC 7516, 7.2.2."""

    protected: str
    encrypted_key: bytes
    iv: bytes
    ciphertext: bytes
    tag: bytes

    @classmethod
    def parse(cls, raw: bytes) -> "Response":
        """Raises MalformedEvidence `kbs.*`. A member `aad` is text that nothing uses."""
        value = _only(
            _object(raw, MAX_RESPONSE), {"protected", "encrypted_key", "iv", "ciphertext", "tag", "aad"}, "response"
        )
        unb64url(value.get("protected"), "protected")
        parts = [unb64url(value.get(name), name) for name in ("encrypted_key", "iv", "ciphertext", "tag")]
        if len(parts[1]) != 12 or len(parts[3]) != 16:
            raise _malformed("kbs.shape", "iv is not 12 bytes, or tag not 16")
        return cls(_text(value, "protected"), *parts)

    def header(self) -> dict[str, Any]:
        """The protected header. Raises MalformedEvidence `kbs.*`."""
        return _object(unb64url(self.protected, "protected"), 4096)

    def build(self) -> bytes:
        parts = {"encrypted_key": self.encrypted_key, "iv": self.iv, "ciphertext": self.ciphertext, "tag": self.tag}
        return _dump({"protected": self.protected} | {name: b64url(part) for name, part in parts.items()})


@dataclass(frozen=True, slots=True)
class ErrorInformation:
    """Every answer that is not 200."""

    variant: str
    detail: str

    @classmethod
    def parse(cls, raw: bytes) -> "ErrorInformation":
        """Raises MalformedEvidence `kbs.json`, `kbs.shape`."""
        value = _object(raw, MAX_REQUEST)
        return cls(_text(value, "type").removeprefix(ERROR_URL), _text(value, "detail", MAX_REQUEST))

    def build(self) -> bytes:
        return _dump({"type": ERROR_URL + self.variant, "detail": self.detail})


def parse_token(raw: bytes) -> str:
    """The JWT of /attest. Raises MalformedEvidence `kbs.json`, `kbs.shape`."""
    token = _text(_object(raw, MAX_ATTESTATION), "token", MAX_ATTESTATION)
    if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token, re.ASCII):
        raise _malformed("kbs.shape", "token is not a JWT")
    return token


def build_token(token: str) -> bytes:
    return _dump({"token": token})


def parse_path(text: str) -> str:
    """`repository/type/tag`, from a path or a `kbs:///` URI. Raises MalformedEvidence `kbs.path`."""
    path = text.removeprefix("kbs:///")
    if len(path) > 512 or not _RESOURCE.match(path):
        refuse_path(path)
    return path


def refuse_path(path: str) -> NoReturn:
    raise _malformed("kbs.path", f"{path[:100]!r} is not repository/type/tag")


def default_path(path: str) -> str:
    """The path of a cookie that names none. Source: RFC 6265, 5.1.4."""
    return path[: path.rfind("/")] or "/" if path.startswith("/") else "/"


@dataclass(frozen=True, slots=True)
class Cookie:
    """The session cookie. `Expires` is not read: the host owns our clock, the broker its sessions."""

    value: str
    path: str

    @classmethod
    def parse(cls, header: str, request_path: str) -> "Cookie | None":
        """From one Set-Cookie header; None if it is another cookie. Source: RFC 6265, 5.2."""
        pair, _, attributes = header.partition(";")
        name, _, value = pair.strip().partition("=")
        if name != COOKIE or not re.fullmatch(r"[!#-+\x2d-:<-\x5b\x5d-~]{1,256}", value):
            return None
        path = default_path(request_path)
        for attribute in attributes.split(";"):
            key, _, given = attribute.strip().partition("=")
            if key.lower() == "path":
                path = given if given.startswith("/") else default_path(request_path)
        return cls(value, path)

    def fits(self, path: str) -> bool:
        """Source: RFC 6265, 5.1.4, path-match."""
        return path == self.path or path.startswith(self.path.rstrip("/") + "/")

    def build(self) -> str:
        return f"{COOKIE}={self.value}"
