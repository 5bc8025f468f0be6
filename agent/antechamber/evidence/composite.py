"""Composite Evidence as KBS 0.4.0 carries it, and the digests that bind its parts.

Source: KBS protocol 0.4.0, attest; RFC 8785 for the canonical form.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rfc8785

from antechamber import strict
from antechamber.errors import MalformedEvidence

MAX_EVENT_LOG = 4 << 20  # bytes
MAX_QUOTE = 128 << 10  # bytes: the kernel's buffer
MAX_DEVICES = 16
MAX_STRUCTURE = 1000  # of `{[,:` in the list of devices: each has eight
_HINT = "send the evidence as KBS protocol 0.4.0 defines it"


@dataclass(frozen=True, slots=True)
class GpuEvidence:
    """One device's Evidence: SPDM request and response bytes, PEM chain leaf first."""

    arch: str  # HOPPER, BLACKWELL, LS10
    uuid: str
    report: bytes
    certificate: bytes


@dataclass(frozen=True, slots=True)
class CompositeEvidence:
    """What the Attester sends and what the Verifier verifies: TDX Evidence and the GPUs' Evidence as one string.

    `additional` is the exact JSON text that REPORTDATA hashes; "" when there is no GPU. Never re-serialised.
    Source: KBS protocol 0.4.0, attest.
    """

    quote: bytes
    event_log: bytes | None
    additional: str

    def primary(self) -> dict[str, str | None]:
        """`primary_evidence` for `tdx`: standard base64, null where there is no log."""
        log = None if self.event_log is None else base64.b64encode(self.event_log).decode()
        return {"cc_eventlog": log, "quote": base64.b64encode(self.quote).decode()}

    @classmethod
    def from_kbs(cls, primary: object, additional: object) -> "CompositeEvidence":
        """From `tee-evidence`. Raises MalformedEvidence `evidence.shape`, `evidence.base64`, `evidence.size`."""
        if not isinstance(primary, dict) or set(primary) - {"cc_eventlog", "quote"} or not isinstance(additional, str):
            raise MalformedEvidence("evidence.shape", "not {cc_eventlog, quote} and a string", hint=_HINT)
        log = primary.get("cc_eventlog")
        return cls(
            quote=decode(primary.get("quote"), MAX_QUOTE),
            event_log=None if log is None or log == "" else decode(log, MAX_EVENT_LOG),
            additional=additional,
        )

    def devices(self) -> tuple[GpuEvidence, ...]:
        """The NVIDIA devices in `additional`. Raises MalformedEvidence `evidence.*`."""
        if not self.additional:
            return ()
        value = strict.load_json(
            self.additional, error=MalformedEvidence, family="evidence", limit=4 << 20, structure=MAX_STRUCTURE
        )
        if not isinstance(value, dict) or set(value) != {"nvidia"}:
            raise MalformedEvidence("evidence.devices", "not an object with nvidia alone", hint=_HINT)
        nvidia = value["nvidia"]
        if not isinstance(nvidia, dict) or set(nvidia) != {"device_evidence_list"}:
            raise MalformedEvidence("evidence.devices", "not an object with device_evidence_list alone", hint=_HINT)
        listed = nvidia["device_evidence_list"]
        if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_DEVICES:
            raise MalformedEvidence("evidence.devices", f"not a list of 1 to {MAX_DEVICES} devices", hint=_HINT)
        return tuple(_device(d) for d in listed)


def _device(value: object) -> GpuEvidence:
    if not isinstance(value, dict) or set(value) != {"arch", "uuid", "evidence", "certificate"}:
        raise MalformedEvidence("evidence.device", "not {arch, uuid, evidence, certificate}", hint=_HINT)
    if not isinstance(value["arch"], str) or not isinstance(value["uuid"], str) or len(value["uuid"]) > 128:
        raise MalformedEvidence("evidence.device", "arch or uuid is not short text", hint=_HINT)
    return GpuEvidence(
        arch=value["arch"],
        uuid=value["uuid"],
        report=decode(value["evidence"], 0x4000),
        certificate=decode(value["certificate"], 0x8000),
    )


def decode(text: object, limit: int) -> bytes:
    """Standard base64 with padding to at most `limit` bytes, never empty."""
    if not isinstance(text, str) or len(text) > limit * 4 // 3 + 8:
        raise MalformedEvidence("evidence.size", f"not base64 text of at most {limit} bytes", hint=_HINT)
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise MalformedEvidence("evidence.base64", str(e), hint=_HINT) from e
    if not raw:
        raise MalformedEvidence("evidence.size", "empty", hint=_HINT)
    return raw


def additional_evidence(devices: Sequence[GpuEvidence]) -> str:
    """The `additional_evidence` string for NVIDIA devices; "" for none."""
    if not devices:
        return ""
    listed = [
        {
            "arch": d.arch,
            "certificate": base64.b64encode(d.certificate).decode(),
            "evidence": base64.b64encode(d.report).decode(),
            "uuid": d.uuid,
        }
        for d in devices
    ]
    return json.dumps({"nvidia": {"device_evidence_list": listed}}, separators=(",", ":"))


def canonical(value: Mapping[str, Any]) -> bytes:
    """RFC 8785 JSON."""
    return rfc8785.dumps(dict(value))


def device_nonce(nonce: str, tee_pubkey: Mapping[str, str]) -> bytes:
    """The GPUs' nonce: first 32 bytes of SHA-384 over {"nonce", "tee-pubkey"}."""
    return hashlib.sha384(canonical({"nonce": nonce, "tee-pubkey": dict(tee_pubkey)})).digest()[:32]


def report_data(nonce: str, tee_pubkey: Mapping[str, str], additional: str) -> bytes:
    """REPORTDATA at the broker: SHA-384 over {"additional-evidence", "nonce", "tee-pubkey"}, padded to 64 bytes."""
    bound = {"additional-evidence": additional, "nonce": nonce, "tee-pubkey": dict(tee_pubkey)}
    return hashlib.sha384(canonical(bound)).digest() + bytes(16)
