"""TDX quotes, versions 4 and 5: bytes to dataclasses, every byte accounted for; and what no production TD may be.

Source: Intel TDX DCAP Quoting Library API, appendix 3; Intel TDX Module ABI, TD_ATTRIBUTES and XFAM.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, Self

from antechamber.errors import AppraisalRefused, MalformedEvidence
from antechamber.evidence.composite import MAX_QUOTE

QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")  # Intel's Quoting Enclave
MAX_SIGNATURE_DATA = 16 << 10  # bytes: real ones have about 4300

_HEADER = struct.Struct("<HHI4s16s20s")  # version, key type, TEE type, reserved, QE vendor, user data
_TYPE_AND_SIZE = struct.Struct("<HI")  # u16 type, u32 size, little-endian
_TD10 = struct.Struct("<16s48s48s8s8s8s48s48s48s48s48s48s48s48s64s")
_TD15 = struct.Struct("<16s48s")  # TEE_TCB_SVN2, MRSERVICETD
_TD15EX = struct.Struct("<B32s48s48s8s16s16s12s48s8s")
_BODY_SIZES = {2: _TD10.size, 3: _TD10.size + _TD15.size, 4: _TD10.size + _TD15.size + _TD15EX.size}

_ECDSA_P256, _TDX = 2, 0x81
_QE_CERTIFICATION, _PCK_CHAIN = 6, 5
# Three certificates, leaf first, and at most one NUL: nothing else hides between them.
_CHAIN = re.compile(rb"(-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n){3}\0?")

_DEBUG, _PROFILING, _SERVTD_EXT = 1 << 0, 0x70, 1 << 17
_SEPT_VE_DISABLE, _MIGRATABLE = 1 << 28, 1 << 29
# Bits that a policy may ask for: LASS, SEPT_VE_DISABLE, PKS, PERFMON. All others are reserved or weaken the TD.
_ATTRIBUTES = 1 << 27 | _SEPT_VE_DISABLE | 1 << 30 | 1 << 63
_NAMED = _DEBUG | _PROFILING | _SERVTD_EXT | _MIGRATABLE  # each refused by a code of its own
_XFAM_FIXED1, _XFAM_ALLOWED = 0x3, 0x0006DBE7

_HINT = "send the quote as the kernel returned it"
_GUEST = "start the guest as a production TD: no debug, no profiling, no migration, SEPT_VE_DISABLE set"


@dataclass(frozen=True, slots=True)
class TdExtension:
    """What a TD 1.5 extended body (type 4) adds, 237 bytes."""

    vm_id: int
    td_id: bytes
    dev_info: bytes
    init_servicetd_hash: bytes
    init_servicetd_attributes: bytes
    init_cpu_svn: bytes
    init_tee_tcb_svn: bytes
    init_tee_fmspc: bytes
    cur_servicetd_hash: bytes
    cur_servicetd_attributes: bytes


@dataclass(frozen=True, slots=True)
class TdBody:
    """A TD Quote Body. Measurements have 48 bytes, attributes and XFAM 8 (little-endian), REPORTDATA 64."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mrsigner_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes | None = None  # type 3 and 4
    mr_servicetd: bytes | None = None  # type 3 and 4
    extension: TdExtension | None = None  # type 4

    @classmethod
    def parse(cls, raw: bytes, body_type: int) -> Self:
        """Consume all of `raw`. Raises MalformedEvidence `quote.body`."""
        if len(raw) != _BODY_SIZES.get(body_type):
            _malformed("quote.body", f"type {body_type} of {len(raw)} bytes")
        *fields, r0, r1, r2, r3, report_data = _TD10.unpack_from(raw)
        fields += [(r0, r1, r2, r3), report_data]
        if body_type > 2:
            fields += _TD15.unpack_from(raw, _TD10.size)
        if body_type > 3:
            fields.append(TdExtension(*_TD15EX.unpack_from(raw, _TD10.size + _TD15.size)))
        return cls(*fields)

    @property
    def attributes(self) -> int:
        """TDATTRIBUTES as a number."""
        return int.from_bytes(self.td_attributes, "little")

    @property
    def debug(self) -> bool:
        """The host may read and write this TD's memory."""
        return bool(self.attributes & _DEBUG)

    @property
    def migratable(self) -> bool:
        return bool(self.attributes & _MIGRATABLE)

    @property
    def sept_ve_disable(self) -> bool:
        return bool(self.attributes & _SEPT_VE_DISABLE)


@dataclass(frozen=True, slots=True)
class Quote:
    """A parsed quote; nothing in it is verified. `raw` is cut at its own length: hash and pin only that."""

    version: int  # 4 or 5
    body_type: int  # 2 TD 1.0, 3 TD 1.5, 4 TD 1.5 extended
    user_data: bytes  # 20, QE ID first
    body: TdBody
    signed: bytes  # the region that `signature` covers
    signature: bytes  # 64, r || s big-endian, by the attestation key
    attestation_key: bytes  # 64, X || Y big-endian
    qe_report: bytes  # 384
    qe_signature: bytes  # 64, r || s big-endian, by the PCK
    qe_auth: bytes  # 32
    pck_chain: bytes  # PEM: leaf, PCK CA, root
    raw: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Consume all of `raw`: what follows the quote must be zero padding.

        Raises MalformedEvidence `quote.size`, `quote.short`, `quote.version`, `quote.header`, `quote.body`,
        `quote.signature-data`, `quote.certification`, `quote.tail`.
        """
        raw = bytes(raw)
        if len(raw) > MAX_QUOTE:
            _malformed("quote.size", f"{len(raw)} bytes, at most {MAX_QUOTE}")
        cursor = _Cursor(raw)
        version, user_data = _header(cursor.take(_HEADER.size))
        body_type, size = _TYPE_AND_SIZE.unpack(cursor.take(_TYPE_AND_SIZE.size)) if version == 5 else (2, _TD10.size)
        if size != _BODY_SIZES.get(body_type):
            _malformed("quote.body", f"type {body_type} of {size} bytes")
        body = TdBody.parse(cursor.take(size), body_type)
        signed = raw[: cursor.at]
        data = cursor.take(cursor.u32(MAX_SIGNATURE_DATA))
        if raw[cursor.at :].strip(b"\0"):
            _malformed("quote.tail", "bytes other than zero follow the quote")
        return cls(version, body_type, user_data, body, signed, *_signature_data(data), raw[: cursor.at])


def _header(raw: bytes) -> tuple[int, bytes]:
    version, key_type, tee, reserved, vendor, user_data = _HEADER.unpack(raw)
    if version not in (4, 5):  # a DICE quote (CBOR) ends here too
        _malformed("quote.version", f"version {version}, not 4 or 5")
    if (key_type, tee, reserved) != (_ECDSA_P256, _TDX, bytes(4)):
        _malformed("quote.header", f"key type {key_type}, TEE type {tee:#x}, reserved {reserved.hex()}")
    if vendor != QE_VENDOR:
        _malformed("quote.header", f"Quoting Enclave vendor {vendor.hex()}, not Intel's")
    return version, user_data


def _signature_data(raw: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes]:
    """Signature, attestation key, QE report, its signature, authentication data, PEM chain."""
    cursor = _Cursor(raw)
    signature, key = cursor.take(64), cursor.take(64)
    kind, size = _TYPE_AND_SIZE.unpack(cursor.take(_TYPE_AND_SIZE.size))
    if kind != _QE_CERTIFICATION or size != cursor.left:
        _malformed("quote.certification", f"type {kind} of {size} bytes, not type 6 of {cursor.left}")
    report, report_signature = cursor.take(384), cursor.take(64)
    if (auth_size := int.from_bytes(cursor.take(2), "little")) != 32:
        _malformed("quote.certification", f"{auth_size} bytes of QE authentication data, not 32")
    auth = cursor.take(auth_size)
    kind, size = _TYPE_AND_SIZE.unpack(cursor.take(_TYPE_AND_SIZE.size))
    if kind != _PCK_CHAIN or size != cursor.left:
        _malformed("quote.certification", f"type {kind} of {size} bytes, not type 5 of {cursor.left}")
    chain = cursor.take(size)
    if not _CHAIN.fullmatch(chain):
        _malformed("quote.certification", "not three PEM certificates and nothing else")
    return signature, key, report, report_signature, auth, chain.rstrip(b"\0")


class _Cursor:
    """Takes bytes from the front, or refuses."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self.at = raw, 0

    @property
    def left(self) -> int:
        return len(self._raw) - self.at

    def take(self, size: int) -> bytes:
        if self.left < size:
            _malformed("quote.short", f"{self.left} bytes left at {self.at}, need {size}")
        self.at += size
        return self._raw[self.at - size : self.at]

    def u32(self, limit: int) -> int:
        if (value := int.from_bytes(self.take(4), "little")) > limit:
            _malformed("quote.signature-data", f"says {value} bytes, at most {limit}")
        return value


def require_production(body: TdBody) -> None:
    """Refuse a TD that no policy may accept, whatever its measurements.

    Raises the first of `production_faults`.
    """
    for fault in production_faults(body):
        raise fault


def production_faults(body: TdBody) -> Iterator[AppraisalRefused]:
    """Each thing that no production TD has.

    Stricter than dcap-qvl, which knows no XFAM and leaves KL, TPA and ICSSD alone. Codes: `tdx.debug`, `tdx.profiling`,
    `tdx.migratable`, `tdx.service-td`, `tdx.attributes`, `tdx.sept-ve`, `tdx.xfam`, `tdx.seam`.
    """
    attributes, xfam = body.attributes, int.from_bytes(body.xfam, "little")
    if body.debug:
        yield _refusal("tdx.debug", "the DEBUG attribute is set: the host reads this TD's memory")
    if attributes & _PROFILING:
        yield _refusal("tdx.profiling", f"profiling attributes in {body.td_attributes.hex()}")
    if body.migratable:
        yield _refusal("tdx.migratable", "the MIGRATABLE attribute is set: a service TD could move this TD")
    if attributes & _SERVTD_EXT or _service_td(body):
        yield _refusal("tdx.service-td", "a service TD is or may be bound")
    if attributes & ~(_ATTRIBUTES | _NAMED):
        yield _refusal("tdx.attributes", f"{body.td_attributes.hex()} has bits outside {_ATTRIBUTES:#x}")
    if not body.sept_ve_disable:
        yield _refusal("tdx.sept-ve", "SEPT_VE_DISABLE is not set: the host can inject #VE")
    if xfam & _XFAM_FIXED1 != _XFAM_FIXED1 or xfam & ~_XFAM_ALLOWED:
        yield _refusal(
            "tdx.xfam", f"XFAM {body.xfam.hex()} breaks FIXED0 {_XFAM_ALLOWED:#x} or FIXED1 {_XFAM_FIXED1:#x}"
        )
    if any(body.seam_attributes) or any(body.mrsigner_seam):
        yield _refusal("tdx.seam", "the TDX module is not Intel's production one")


def _service_td(body: TdBody) -> bool:
    """Whether a service TD was or is bound."""
    hashes = [body.mr_servicetd or b""]
    if body.extension:
        hashes += [body.extension.init_servicetd_hash, body.extension.cur_servicetd_hash]
    return any(any(h) for h in hashes)


def _malformed(code: str, detail: str) -> NoReturn:
    raise MalformedEvidence(code, detail, hint=_HINT)


def _refusal(code: str, detail: str) -> AppraisalRefused:
    return AppraisalRefused(code, detail, hint=_GUEST)
