"""The signed collateral-and-time bundle: DSSE over JSON, Ed25519. Any transport may carry it.

Source: DSSE 1.0.2 (envelope, pre-authentication encoding); Intel PCS API v4 for what one set holds.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from antechamber import strict
from antechamber.errors import AppraisalRefused, MalformedEvidence

PAYLOAD_TYPE = "application/vnd.antechamber.collateral+json"
MAX_ENVELOPE = 8 << 20  # bytes
MAX_SETS = 16
_MAX_SIGNATURES = 8
_MAX_TIME = 1 << 40  # seconds since the epoch
_HINT = "fetch collateral anew from the broker, or with `antechamber collateral fetch`"

_PEM, _HEX, _JSON = "pem", "hex", "json"
_KEYS = {
    "pck_crl_issuer_chain": (_PEM, 16 << 10),
    "root_ca_crl": (_HEX, 1 << 20),
    "pck_crl": (_HEX, 2 << 20),
    "tcb_info_issuer_chain": (_PEM, 16 << 10),
    "tcb_info": (_JSON, 256 << 10),
    "tcb_info_signature": (_HEX, 128),
    "qe_identity_issuer_chain": (_PEM, 16 << 10),
    "qe_identity": (_JSON, 64 << 10),
    "qe_identity_signature": (_HEX, 128),
}  # limits in characters
_OPTIONAL = {"pck_certificate_chain": (_PEM, 16 << 10)}
_HEX_TEXT = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_PEM_TEXT = re.compile(r"(?:-----BEGIN CERTIFICATE-----\r?\n[A-Za-z0-9+/=\r\n]+-----END CERTIFICATE-----\s*)*")


@dataclass(frozen=True, slots=True)
class TdxCollateral:
    """One set in dcap-qvl's JSON shape, as text; unverified until `chain.verify_quote` used it."""

    text: str = field(repr=False)
    tcb_info_issuer_chain: str = field(repr=False)
    qe_identity_issuer_chain: str = field(repr=False)
    fmspc: str  # 12 upper-case hex digits
    pce_id: str  # 4 upper-case hex digits
    tcb_type: int
    tcb_evaluation_data_number: int  # the lower of TCB info's and QE identity's
    issue_date: int  # the earlier of the two, seconds since the epoch
    next_update: int  # the earlier of the two

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """From JSON text. Raises MalformedEvidence `collateral.json`, `collateral.shape`, `collateral.value`."""
        return cls.build(strict.load_json(text, error=MalformedEvidence, family="collateral", limit=MAX_ENVELOPE))

    @classmethod
    def build(cls, value: object) -> Self:
        """From parsed JSON; raises as `parse` does."""
        parts = _members(value)
        tcb, qe = _signed_json(parts["tcb_info"]), _signed_json(parts["qe_identity"])
        numbers = [_number(document, "tcbEvaluationDataNumber") for document in (tcb, qe)]
        return cls(
            # The PCK chain is the quote's own, which this one would replace.
            text=json.dumps({key: parts[key] for key in _KEYS}),
            tcb_info_issuer_chain=parts["tcb_info_issuer_chain"],
            qe_identity_issuer_chain=parts["qe_identity_issuer_chain"],
            fmspc=_hex(tcb, "fmspc", 12),
            pce_id=_hex(tcb, "pceId", 4),
            tcb_type=_number(tcb, "tcbType"),
            tcb_evaluation_data_number=min(numbers),
            issue_date=min(_moment(tcb, "issueDate"), _moment(qe, "issueDate")),
            next_update=min(_moment(tcb, "nextUpdate"), _moment(qe, "nextUpdate")),
        )


@dataclass(frozen=True, slots=True)
class Collateral:
    """What the signer said, and when: its time is the clock of a guest that trusts no other."""

    time: int  # seconds since the epoch
    nonce: bytes
    tdx: tuple[TdxCollateral, ...]

    def for_fmspc(self, fmspc: str) -> TdxCollateral:
        """The set for one platform family. Raises AppraisalRefused `collateral.fmspc`."""
        for one in self.tdx:
            if one.fmspc == fmspc.upper():
                return one
        raise AppraisalRefused(
            "collateral.fmspc",
            f"no collateral for FMSPC {fmspc.upper()}, only {', '.join(c.fmspc for c in self.tdx) or 'none'}",
            hint="give the broker this platform's collateral",
        )


def open_collateral(envelope: bytes, signer: bytes, *, nonce: bytes | None, floor: int) -> Collateral:
    """Open an envelope that `signer` (Ed25519, 32 bytes) signed; `nonce` None accepts any, `floor` is in seconds.

    1. the envelope parses, and is of our payload type
    2. one of its signatures is the pinned signer's; only then is the payload read
    3. the payload parses
    4. it answers our nonce
    5. its time is not before the floor

    Raises MalformedEvidence `collateral.*`; AppraisalRefused `collateral.type`, `collateral.signature`,
    `collateral.nonce`, `collateral.time`.
    """
    payload, signatures = _envelope(envelope)  # 1
    _require_signature(payload, signatures, signer)  # 2
    collateral = _payload(payload)  # 3
    if nonce is not None and collateral.nonce != nonce:  # 4
        raise AppraisalRefused(
            "collateral.nonce", f"it answers {collateral.nonce.hex()[:16] or 'no nonce'}, not ours", hint=_HINT
        )
    if collateral.time < floor:  # 5
        raise AppraisalRefused(
            "collateral.time",
            f"its time {collateral.time} is before the floor {floor}",
            hint="correct the signer's clock",
        )
    return collateral


def seal_collateral(tdx: Sequence[TdxCollateral], *, time: int, nonce: bytes, key: Ed25519PrivateKey) -> bytes:
    """An envelope over these sets, this time (seconds since the epoch) and this nonce (empty: for anyone)."""
    sets = [json.loads(one.text) for one in tdx]
    payload = json.dumps(
        {"version": 1, "time": time, "nonce": nonce.hex(), "tdx": sets}, separators=(",", ":")
    ).encode()
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    signature = {"keyid": key_id(public), "sig": base64.b64encode(key.sign(_pae(payload))).decode()}
    body = {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(payload).decode(), "signatures": [signature]}
    return json.dumps(body, separators=(",", ":")).encode()


def key_id(public: bytes) -> str:
    """A hint for people; nothing is decided by it."""
    return hashlib.sha256(public).hexdigest()[:16]


def _pae(payload: bytes) -> bytes:
    """DSSE pre-authentication encoding."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _envelope(text: bytes) -> tuple[bytes, list[bytes]]:
    value: Any = strict.load_json(text, error=MalformedEvidence, family="collateral", limit=MAX_ENVELOPE)
    if not isinstance(value, dict) or set(value) != {"payloadType", "payload", "signatures"}:
        _malformed("collateral.envelope", "not a DSSE envelope")
    if value["payloadType"] != PAYLOAD_TYPE:
        seen = str(value["payloadType"])[:100]
        raise AppraisalRefused("collateral.type", f"the payload is {seen!r}", hint=_HINT)
    listed = value["signatures"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= _MAX_SIGNATURES:
        _malformed("collateral.envelope", f"not 1 to {_MAX_SIGNATURES} signatures")
    for one in listed:
        if not isinstance(one, dict) or not {"sig"} <= set(one) <= {"sig", "keyid"}:
            _malformed("collateral.envelope", "a signature is not {keyid, sig}")
        if not isinstance(one.get("keyid", ""), str):
            _malformed("collateral.envelope", "a keyid is not text")
    return _base64(value["payload"]), [_base64(one["sig"]) for one in listed]


def _require_signature(payload: bytes, signatures: Sequence[bytes], signer: bytes) -> None:
    try:
        key = Ed25519PublicKey.from_public_bytes(signer)
    except ValueError as e:
        raise AppraisalRefused("collateral.signature", "the pinned signer is no Ed25519 key", hint=_HINT) from e
    if not any(_verifies(key, signature, payload) for signature in signatures):
        raise AppraisalRefused(
            "collateral.signature",
            f"no signature by the pinned signer, {key_id(signer)}",
            hint="pin the broker's signer",
        )


def _verifies(key: Ed25519PublicKey, signature: bytes, payload: bytes) -> bool:
    try:
        key.verify(signature, _pae(payload))
    except InvalidSignature:
        return False
    return True


def _payload(text: bytes) -> Collateral:
    value: Any = strict.load_json(text, error=MalformedEvidence, family="collateral", limit=MAX_ENVELOPE)
    if not isinstance(value, dict) or set(value) != {"version", "time", "nonce", "tdx"}:
        _malformed("collateral.payload", "not {version, time, nonce, tdx}")
    if type(value["version"]) is not int or value["version"] != 1:
        _malformed("collateral.payload", f"version {str(value['version'])[:20]}, not 1")
    time, nonce, sets = value["time"], value["nonce"], value["tdx"]
    if type(time) is not int or not 0 <= time < _MAX_TIME:
        _malformed("collateral.payload", "time is not in seconds since the epoch")
    if not isinstance(nonce, str) or not re.fullmatch(r"(?:[0-9a-f]{2}){0,64}", nonce):
        _malformed("collateral.payload", "nonce is not hex of at most 64 bytes")
    if not isinstance(sets, list) or len(sets) > MAX_SETS:
        _malformed("collateral.payload", f"tdx is not a list of at most {MAX_SETS} sets")
    tdx = tuple(TdxCollateral.build(one) for one in sets)
    if len({one.fmspc for one in tdx}) != len(tdx):
        _malformed("collateral.payload", "two sets are for one FMSPC")
    return Collateral(time, bytes.fromhex(nonce), tdx)


def _members(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not set(_KEYS) <= set(value) <= set(_KEYS | _OPTIONAL):
        _malformed("collateral.shape", f"not an object with {', '.join(_KEYS)}")
    for key, (kind, limit) in (_KEYS | _OPTIONAL).items():
        text = value.get(key, "")
        if not isinstance(text, str) or len(text) > limit:
            _malformed("collateral.value", f"{key} is not text of at most {limit} characters")
        if kind == _HEX and not _HEX_TEXT.fullmatch(text):
            _malformed("collateral.value", f"{key} is not hex")
        if kind == _PEM and not _PEM_TEXT.fullmatch(text):
            _malformed("collateral.value", f"{key} is not PEM certificates alone")
    return value


def _signed_json(text: str) -> Mapping[str, Any]:
    value = strict.load_json(text, error=MalformedEvidence, family="collateral")
    if not isinstance(value, dict):
        _malformed("collateral.value", "signed collateral is not a JSON object")
    return value


def _hex(document: Mapping[str, Any], key: str, digits: int) -> str:
    text = document.get(key)
    if not isinstance(text, str) or not re.fullmatch(rf"[0-9A-Fa-f]{{{digits}}}", text):
        _malformed("collateral.value", f"{key} is not {digits} hex digits")
    return text.upper()


def _number(document: Mapping[str, Any], key: str) -> int:
    number = document.get(key)
    if type(number) is not int or not 0 <= number < 1 << 32:
        _malformed("collateral.value", f"{key} is not a small number")
    return number


def _moment(document: Mapping[str, Any], key: str) -> int:
    try:
        return strict.parse_utc(str(document.get(key)))
    except ValueError as e:
        raise MalformedEvidence("collateral.value", f"{key} is no time in UTC", hint=_HINT) from e


def _base64(text: object) -> bytes:
    if not isinstance(text, str):
        _malformed("collateral.envelope", "a member is not base64 text")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise MalformedEvidence("collateral.envelope", str(e)[:100], hint=_HINT) from e


def _malformed(code: str, detail: str) -> NoReturn:
    raise MalformedEvidence(code, detail, hint=_HINT)
