"""Who attests: `sample` (a Trustee whose policy allows it), the simulated TD, or the TD that the kit runs in."""

import base64
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509

from antechamber.cli import real_hardware
from antechamber.errors import HardwareUnavailable
from antechamber.evidence.anchors import Anchors, spki_sha256
from antechamber.evidence.composite import additional_evidence
from antechamber.evidence.eventlog import DOMAIN, ORDER, AaelEvent, compose_log
from antechamber.evidence.gpu_chain import gpu_event, verify_devices
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.machine import Machine

AAEL = (Path("/run/antechamber/eventlog"), Path("/run/attestation-agent/eventlog"))


class Attester(Protocol):
    """`digest` has 48 bytes, `nonce` 32."""

    tee: str

    def additional(self, nonce: bytes) -> str:
        """The `additional_evidence` string; "" without devices."""

    def primary(self, digest: bytes) -> Any:
        """The `primary_evidence`."""

    def with_init_data(self, mr_config_id: bytes) -> "Attester | None":
        """The same guest, launched with these 48 bytes; None where that cannot be done from here."""


class Sample:
    """Proves nothing: a Trustee accepts it only by a policy that says so."""

    tee = "sample"

    def additional(self, nonce: bytes) -> str:
        return ""

    def primary(self, digest: bytes) -> Any:
        return {"svn": "1", "report_data": base64.b64encode(digest).decode()}

    def with_init_data(self, mr_config_id: bytes) -> "Sample":
        return self  # its verifier compares none


class Simulated:
    """A simulated TD that has measured its boot. `contents` are the events that a policy pins: `model` above all."""

    tee = "tdx"

    def __init__(self, machine: Machine, contents: Mapping[str, str]) -> None:
        self._machine, self._contents, self._log = machine, contents, b""
        for operation in ORDER:
            content = contents.get(operation) or (
                self._gpu() if operation == "gpu" else f"sha384:{os.urandom(48).hex()}"
            )
            event = AaelEvent(DOMAIN, operation, content)
            self._log += event.encode()
            machine.extend_rtmr3(event.digest())

    def _gpu(self) -> str:
        root, nonce = x509.load_pem_x509_certificate(self._machine.nvidia.root_pem.encode()), bytes(32)
        anchors = Anchors(None, spki_sha256(root))
        return gpu_event(
            verify_devices(self._machine.collect(nonce), nonce=nonce, anchors=anchors, now=int(time.time()))
        )

    def additional(self, nonce: bytes) -> str:
        return additional_evidence(self._machine.collect(nonce))

    def primary(self, digest: bytes) -> Any:
        quote = self._machine.quote(digest + bytes(16))
        log = compose_log(self._machine.ccel(), self._log)
        return {"cc_eventlog": base64.b64encode(log).decode(), "quote": base64.b64encode(quote).decode()}

    def with_init_data(self, mr_config_id: bytes) -> "Simulated":
        knobs = Knobs(mr_config_id=mr_config_id.hex())
        return Simulated(Machine(self._machine.intel, self._machine.nvidia, knobs), self._contents)


class Tdx:
    """This TD and its GPUs, through the agent's own adapters, with the log of whoever extends RTMR3."""

    tee = "tdx"

    def __init__(self) -> None:
        self._hardware = real_hardware()

    def additional(self, nonce: bytes) -> str:
        try:
            return additional_evidence(self._hardware.gpus.collect(nonce))
        except HardwareUnavailable as e:
            if e.code != "nvml.library":  # no driver: a TD without a GPU
                raise
            return ""

    def primary(self, digest: bytes) -> Any:
        quote = self._hardware.quotes.quote(digest + bytes(16))
        records = next((path.read_bytes() for path in AAEL if path.exists()), b"")
        ccel = self._hardware.measurements.ccel()
        log = base64.b64encode(compose_log(ccel, records)).decode() if ccel or records else None
        return {"cc_eventlog": log, "quote": base64.b64encode(quote).decode()}

    def with_init_data(self, mr_config_id: bytes) -> None:
        return None


def changed(primary: Any) -> Any:
    """The same evidence over one other bit of its digest, so that only the binding is wrong."""
    value = json.loads(json.dumps(primary))
    name = "report_data" if "report_data" in value else "quote"
    raw = bytearray(base64.b64decode(value[name]))
    raw[-1 if name == "report_data" else 48 + 520] ^= 1
    value[name] = base64.b64encode(bytes(raw)).decode()
    return value
