"""The broker's Attestation Result as a Relying Party reads it: EAR in a JWT. Pure; no network.

Source: draft-fv-rats-ear (EAR), RFC 7519 (JWT), KBS protocol 0.4.0 for the members that Trustee reads.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from antechamber import strict
from antechamber.errors import AppraisalRefused, ConfigError, MalformedEvidence
from antechamber.evidence.certificates import CERTIFICATE_ERRORS
from antechamber.evidence.eventlog import DOMAIN

PROFILE = "tag:github.com,2024:confidential-containers/Trustee"
EVIDENCE = "ear.veraison.annotated-evidence"
MAX_TOKEN = 256 << 10  # characters
SKEW_S = 300  # of the clock that judges, against the broker's, for `iat`
_MAX_HEADER = 16 << 10
_HINT = "ask the guest for a fresh attestation, and pin the CA of its broker's tokens"


@dataclass(frozen=True, slots=True)
class EarClaims:
    """What a verified token says. Its signer is the broker of the CA that verified it."""

    status: str  # affirming, warning, contraindicated, none: of the CPU's submodule
    policy: str  # ear.appraisal-policy-id
    issuer: str
    token_id: str  # jti
    issued: int
    expires: int
    tee_pubkey: Mapping[str, str]
    events: Mapping[str, str]  # operation to content, of our domain
    submods: Mapping[str, str]  # name to status

    @property
    def tls(self) -> str | None:
        """`sha384:<hex>` of the TLS key that RTMR3 names, or None."""
        return self.events.get("tls")


def _malformed(detail: str) -> MalformedEvidence:
    return MalformedEvidence("ear.shape", detail, hint=_HINT)


def parse_ear(token: str, ca_pem: str, now: int) -> EarClaims:
    """Verify a token at `now`, seconds since the epoch, against the one CA of its signer.

    1. the header names ES256 and carries its signer's certificate
    2. that certificate is issued by the CA, for signing, and valid at `now`
    3. the signature is by its key
    4. `exp` is not reached, `iat` not in the future

    Raises MalformedEvidence `ear.json`, `ear.shape`; AppraisalRefused `ear.chain`, `ear.signature`, `ear.expired`,
    `ear.future`; ConfigError `install.joserfc`, `policy.value`.
    """
    if len(token) > MAX_TOKEN or not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token, re.ASCII):
        raise _malformed(f"not a JWT of at most {MAX_TOKEN} characters")
    leaf = _signer(token.partition(".")[0])  # 1
    _verify_chain(leaf, _ca(ca_pem), now)  # 2
    claims = _claims(_verify_signature(token, leaf))  # 3
    if now >= claims.expires:  # 4
        raise AppraisalRefused("ear.expired", f"it expired {now - claims.expires} s ago", hint=_HINT)
    if claims.issued > now + SKEW_S:
        raise AppraisalRefused("ear.future", f"it is issued {claims.issued - now} s from now", hint=_HINT)
    return claims


def _signer(header: str) -> x509.Certificate:
    try:
        raw = base64.b64decode(header + "=" * (-len(header) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as e:
        raise _malformed("the header is not base64url") from e
    value: Any = strict.load_json(raw, error=MalformedEvidence, family="ear", limit=_MAX_HEADER)
    jwk = value.get("jwk") if isinstance(value, dict) else None
    chain = jwk.get("x5c") if isinstance(jwk, dict) else None
    if not isinstance(chain, list) or not chain or not isinstance(chain[0], str) or value.get("alg") != "ES256":
        raise _malformed("the header is not ES256 with jwk.x5c")
    try:
        return x509.load_der_x509_certificate(base64.b64decode(chain[0], validate=True))
    except CERTIFICATE_ERRORS as e:  # binascii.Error is a ValueError
        raise _malformed("jwk.x5c is not a certificate") from e


def _ca(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except CERTIFICATE_ERRORS as e:
        raise ConfigError("policy.value", "attestation_result.ca is not a PEM certificate", hint=_HINT) from e


def _refuse_chain(detail: str) -> AppraisalRefused:
    return AppraisalRefused("ear.chain", detail, hint=_HINT)


def _verify_chain(leaf: x509.Certificate, ca: x509.Certificate, now: int) -> None:
    """A chain of exactly two: nothing else of the path is believed."""
    try:
        leaf.verify_directly_issued_by(ca)
        constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
        own = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except (*CERTIFICATE_ERRORS, InvalidSignature) as e:
        raise _refuse_chain("the signer's certificate is not issued by the CA of the policy") from e
    except x509.ExtensionNotFound as e:
        raise _refuse_chain("a certificate does not say what it may do") from e
    if not constraints.ca or own.ca or not usage.digital_signature:
        raise _refuse_chain("the signer's certificate is not for signing, or its issuer is no CA")
    for certificate in (leaf, ca):
        start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        if not start <= now <= end:
            raise _refuse_chain(f"a certificate is valid from {start:.0f} to {end:.0f}, not at {now}")


def _verify_signature(token: str, leaf: x509.Certificate) -> bytes:
    """The payload, once its signature holds."""
    try:
        from joserfc import jws  # noqa: PLC0415  # an extra, that a guest does without
        from joserfc.errors import JoseError  # noqa: PLC0415
        from joserfc.jwk import ECKey  # noqa: PLC0415
    except ImportError as e:
        raise ConfigError("install.joserfc", "joserfc is not installed", hint="pip install antechamber[client]") from e
    try:
        public = leaf.public_key()
    except CERTIFICATE_ERRORS as e:
        raise _refuse_chain("the signer's key does not parse") from e
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise _refuse_chain("the signer's key is not EC P-256")
    registry = jws.JWSRegistry(algorithms=["ES256"])
    registry.max_header_length, registry.max_payload_length = _MAX_HEADER * 2, MAX_TOKEN
    key = ECKey.import_key(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    try:
        return jws.deserialize_compact(token, key, registry=registry).payload or b""
    except (JoseError, ValueError, TypeError) as e:  # TypeError: a header such as `crit: 5`
        raise AppraisalRefused("ear.signature", "the signature does not verify", hint=_HINT) from e


def _claims(payload: bytes) -> EarClaims:
    value: Any = strict.load_json(payload, error=MalformedEvidence, family="ear", limit=MAX_TOKEN)
    if not isinstance(value, dict) or value.get("eat_profile") != PROFILE or not isinstance(value.get("submods"), dict):
        raise _malformed("not an EAR of Trustee's profile")
    cpu = value["submods"].get("cpu0")
    if not isinstance(cpu, dict) or not isinstance(cpu.get(EVIDENCE), dict):
        raise _malformed("no submodule cpu0 with its evidence")
    pubkey = value.get("tee-pubkey")
    if not isinstance(pubkey, dict):
        raise _malformed("no tee-pubkey")
    return EarClaims(
        status=_text(cpu, "ear.status"),
        policy=_text(cpu, "ear.appraisal-policy-id"),
        issuer=_text(value, "iss"),
        token_id=_text(value, "jti"),
        issued=_time(value, "iat"),
        expires=_time(value, "exp"),
        tee_pubkey={str(k): str(v) for k, v in pubkey.items()},
        events=_events(cpu[EVIDENCE].get("tdx")),
        submods={k: _text(v, "ear.status") for k, v in value["submods"].items() if isinstance(v, dict)},
    )


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or len(found) > 1024:
        raise _malformed(f"{name} is not short text")
    return found


def _time(value: Mapping[str, Any], name: str) -> int:
    found = value.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 1 << 53:
        raise _malformed(f"{name} is not a time in whole seconds")
    return found


def _events(tdx: object) -> dict[str, str]:
    """The AAEL events of our domain; one that stands twice would be ambiguous."""
    listed = tdx.get("uefi_event_logs") if isinstance(tdx, dict) else None
    events: dict[str, str] = {}
    for event in listed if isinstance(listed, list) else []:
        details = event.get("details") if isinstance(event, dict) else None
        data = details.get("data") if isinstance(details, dict) else None
        if not isinstance(data, dict) or data.get("domain") != DOMAIN:
            continue
        operation = _text(data, "operation")
        if operation in events:
            raise _malformed(f"event {operation[:32]} stands twice")
        events[operation] = _text(data, "content")
    return events
