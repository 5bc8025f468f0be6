"""NVIDIA attestation report: SPDM 1.1 GET_MEASUREMENTS request and signed MEASUREMENTS response. Bytes to values.

Source: DMTF DSP0274 1.1; opaque data as NVIDIA's attestation SDK 2.0.0 reads it.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from antechamber.errors import MalformedEvidence

Mode = Literal["spt", "mpt", "ppcie", "unknown"]

MAX_REPORT = 0x2000  # bytes: NVML's buffer
GPU_BLOCKS, SWITCH_BLOCKS = 64, 31
_REQUEST = bytes.fromhex("11e001ff")  # SPDM 1.1, GET_MEASUREMENTS, signature asked for, all blocks
_RESPONSE = bytes.fromhex("1160")  # SPDM 1.1, MEASUREMENTS; two parameters follow
_BLOCK = struct.Struct("<BBHBH48s")  # index, DMTF specification, size, value type, value size, SHA-384
_TLV, _TYPED_TLV = struct.Struct("<HH"), struct.Struct("<HHH")  # type, (value type,) size
_NVDAOD = struct.Struct("<6sHBB2s")  # magic, profile, major, minor, reserved
_MAGIC = b"NVDAOD"
_SIGNATURE = 96  # bytes: r || s, big-endian
_DRIVER, _VBIOS, _FWID, _PPCIE, _VERSION, _CHIP, _FEATURE = 3, 6, 20, 21, 34, 35, 36
_ON, _OFF = 0xAA, 0x55
_PPCIE_STATES: Mapping[int, Mode] = {_ON: "ppcie", _OFF: "spt"}
_FEATURES: Mapping[int, Mode] = {0: "spt", 1: "mpt", 2: "ppcie"}
_HINT = "send the report exactly as NVML returned it, from a driver of 535 or later"


@dataclass(frozen=True, slots=True)
class Opaque:
    """The device's own statements. `version`: 0 or 1 in the first form, 2 in NVDAOD."""

    version: int
    fields: Mapping[int, bytes]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Consume all of `raw`, in either form. Raises MalformedEvidence `gpu-report.opaque`, `gpu-report.version`."""
        if raw[: len(_MAGIC)] == _MAGIC:
            return cls._parse_nvdaod(raw)
        fields = _tlv(raw, _TLV)
        version = int.from_bytes(fields.get(_VERSION, b""), "little")
        if version > 1:
            raise MalformedEvidence("gpu-report.version", f"opaque data version {version}, known 0 and 1", hint=_HINT)
        return cls(version, fields)

    @classmethod
    def _parse_nvdaod(cls, raw: bytes) -> Self:
        if len(raw) < _NVDAOD.size:
            raise MalformedEvidence("gpu-report.opaque", f"NVDAOD header of {len(raw)} bytes", hint=_HINT)
        _, profile, major, minor, _ = _NVDAOD.unpack_from(raw)
        if profile != 0 or major != 2:
            seen = f"NVDAOD profile {profile} version {major}.{minor}, known 0 and 2"
            raise MalformedEvidence("gpu-report.version", seen, hint=_HINT)
        return cls(major, _tlv(raw[_NVDAOD.size :], _TYPED_TLV))

    @property
    def driver_version(self) -> str:
        """`550.90.07`; "" where the device has no driver of its own (a switch)."""
        text = self._text(_DRIVER)
        if text and not re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,3}", text, re.ASCII):
            raise MalformedEvidence("gpu-report.driver", f"driver version {text!r}", hint=_HINT)
        return text

    @property
    def vbios_version(self) -> str:
        """`96.00.9F.00.01`: 8 bytes, low part last, on a GPU; text on a switch."""
        raw = self.fields.get(_VBIOS, b"")
        if len(raw) == 8:  # 009f0096 01000000: the first word reversed, then the lowest byte of the second
            return ".".join(f"{b:02X}" for b in (*raw[3::-1], raw[4]))
        text = self._text(_VBIOS).upper()
        if not re.fullmatch(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}", text):
            raise MalformedEvidence("gpu-report.vbios", f"VBIOS version of {len(raw)} bytes", hint=_HINT)
        return text

    @property
    def chip(self) -> str:
        """`GB100`; "" in reports before version 1 and from Hopper."""
        return self._text(_CHIP)

    @property
    def fwid(self) -> bytes | None:
        """48 bytes; None from 535 drivers and switches, which do not report it."""
        raw = self.fields.get(_FWID)
        if raw is not None and len(raw) != 48:
            raise MalformedEvidence("gpu-report.fwid", f"FWID of {len(raw)} bytes, not 48", hint=_HINT)
        return raw

    @property
    def mode(self) -> Mode:
        """From FEATURE_FLAG; before version 1, which lacks it, from PROTECTED_PCIE_STATUS."""
        status = int.from_bytes(self.fields.get(_PPCIE, b""), "little")
        if (flag := self.fields.get(_FEATURE)) is None:
            return _PPCIE_STATES.get(status, "unknown")
        mode = _FEATURES.get(int.from_bytes(flag, "little"), "unknown") if flag else "unknown"
        if _PPCIE in self.fields and (status == _ON) != (mode == "ppcie"):
            seen = f"FEATURE_FLAG says {mode}, PROTECTED_PCIE_STATUS {status:#x}"
            raise MalformedEvidence("gpu-report.mode", seen, hint=_HINT)
        return mode

    def _text(self, kind: int) -> str:
        raw = self.fields.get(kind, b"").rstrip(b"\0")
        if not all(0x21 <= b <= 0x7E for b in raw):
            raise MalformedEvidence("gpu-report.opaque", f"field {kind} is not ASCII text", hint=_HINT)
        return raw.decode()


@dataclass(frozen=True, slots=True)
class Report:
    """Request and response as the device signed them. `signed`: what the ECDSA P-384 signature covers."""

    nonce: bytes  # 32, ours
    slot: int
    measurements: tuple[bytes, ...]  # SHA-384, block 1 first
    responder_nonce: bytes  # 32
    opaque: Opaque
    signed: bytes
    signature: bytes  # 96

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Consume all of `raw`; one NUL after the signature is tolerated, as CoCo's attester appends one.

        Raises MalformedEvidence `gpu-report.size`, `.request`, `.response`, `.blocks`, `.opaque`, `.version`, `.tail`.
        """
        if len(raw) > MAX_REPORT:
            raise MalformedEvidence("gpu-report.size", f"{len(raw)} bytes, at most {MAX_REPORT}", hint=_HINT)
        cursor = _Cursor(raw)
        if cursor.take(4) != _REQUEST:
            raise MalformedEvidence("gpu-report.request", "not SPDM 1.1 GET_MEASUREMENTS of all blocks", hint=_HINT)
        nonce, slot = cursor.take(32), cursor.take(1)[0]
        if cursor.take(4)[:2] != _RESPONSE:
            raise MalformedEvidence("gpu-report.response", "not SPDM 1.1 MEASUREMENTS", hint=_HINT)
        count, length = cursor.take(1)[0], cursor.number(3)
        measurements = _blocks(cursor.take(length), count)
        responder_nonce = cursor.take(32)
        opaque = Opaque.parse(cursor.take(cursor.number(2)))
        signed = raw[: cursor.at]
        signature = cursor.take(_SIGNATURE)
        if (tail := raw[cursor.at :]) not in (b"", b"\0"):
            raise MalformedEvidence("gpu-report.tail", f"{len(tail)} bytes after the signature", hint=_HINT)
        return cls(nonce, slot, measurements, responder_nonce, opaque, signed, signature)


@dataclass(slots=True)
class _Cursor:
    raw: bytes
    at: int = 0

    def take(self, size: int) -> bytes:
        if len(self.raw) - self.at < size:
            seen = f"{len(self.raw)} bytes, need {size} more at {self.at}"
            raise MalformedEvidence("gpu-report.size", seen, hint=_HINT)
        self.at += size
        return self.raw[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")


def _blocks(record: bytes, count: int) -> tuple[bytes, ...]:
    """Exactly the blocks of a GPU or an LS10 switch, in order: no gap, no index twice."""
    if count not in (GPU_BLOCKS, SWITCH_BLOCKS) or len(record) != count * _BLOCK.size:
        raise MalformedEvidence("gpu-report.blocks", f"{count} blocks in {len(record)} bytes", hint=_HINT)
    values = []
    for wanted, (index, specification, size, kind, value_size, value) in enumerate(_BLOCK.iter_unpack(record), 1):
        if index != wanted:
            raise MalformedEvidence("gpu-report.blocks", f"block {index} where {wanted} belongs", hint=_HINT)
        if (specification, size, kind, value_size) != (1, 51, 1, 48):
            raise MalformedEvidence("gpu-report.blocks", f"block {index} is not a DMTF SHA-384 digest", hint=_HINT)
        values.append(value)
    return tuple(values)


def _tlv(raw: bytes, head: struct.Struct) -> dict[int, bytes]:
    """Fields by type; the value type of NVDAOD says how to print a field, never what it means."""
    fields: dict[int, bytes] = {}
    cursor = 0
    while cursor < len(raw):
        if len(raw) - cursor < head.size:
            raise MalformedEvidence("gpu-report.opaque", f"{len(raw) - cursor} bytes left over", hint=_HINT)
        kind, *_, size = head.unpack_from(raw, cursor)
        value = raw[cursor + head.size : cursor + head.size + size]
        if len(value) != size:
            raise MalformedEvidence("gpu-report.opaque", f"field {kind} says {size}, has {len(value)}", hint=_HINT)
        if kind in fields:
            raise MalformedEvidence("gpu-report.opaque", f"field {kind} stands twice", hint=_HINT)
        fields[kind] = value
        cursor += head.size + size
    return fields
