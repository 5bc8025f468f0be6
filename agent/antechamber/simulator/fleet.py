"""Guests by the number, and an owner's policy that fits them: for load, attacks and tests of a broker."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from antechamber.broker import admin
from antechamber.broker.jwe import TeeKey
from antechamber.broker.kbs import Kbs
from antechamber.evidence.anchors import Anchors, spki_sha256
from antechamber.evidence.bundle import sha384
from antechamber.evidence.composite import (
    CompositeEvidence,
    GpuEvidence,
    additional_evidence,
    device_nonce,
    report_data,
)
from antechamber.evidence.eventlog import CAP, DOMAIN, AaelEvent, compose_log
from antechamber.evidence.gpu_chain import gpu_event, verify_devices
from antechamber.simulator.deployment import NAMES, UNLIMITED, gpu_policy
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.machine import Machine
from antechamber.simulator.nvidia import NvidiaPki

MODEL_HASH = "sha256:" + "11" * 32
KEY = bytes(range(32))


@dataclass
class Guest:
    """A simulated TD that has measured its boot."""

    machine: Machine
    tls: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    tee: TeeKey = field(default_factory=TeeKey.generate)
    log: bytes = b""

    @property
    def tls_event(self) -> str:
        return sha384(self.tls.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    @property
    def gpu_event(self) -> str:
        root, nonce = x509.load_pem_x509_certificate(self.machine.nvidia.root_pem.encode()), bytes(32)
        anchors, devices = Anchors(None, spki_sha256(root)), self.machine.collect(nonce)
        return gpu_event(verify_devices(devices, nonce=nonce, anchors=anchors, now=int(time.time())))

    def extend(self, operation: str, content: str) -> None:
        event = AaelEvent(DOMAIN, operation, content)
        self.log += event.encode()
        self.machine.extend_rtmr3(event.digest())

    def measure(self, gpu: str | None = None) -> None:
        """Extend RTMR3 as a boot does; `gpu` is the content of that event, where it is known already."""
        any_ = "sha384:" + "22" * 48
        contents = {"config": any_, "init-data": any_, "engine": any_, "model": MODEL_HASH}
        contents["gpu"] = gpu or self.gpu_event
        for operation, content in (contents | {"tls": self.tls_event, "receipt": any_}).items():
            self.extend(operation, content)

    def cap(self) -> None:
        self.extend(CAP, self.tls_event)

    def devices(self, nonce: str) -> tuple[GpuEvidence, ...]:
        return self.machine.collect(device_nonce(nonce, self.tee.public_jwk))

    def evidence(self, nonce: str) -> CompositeEvidence:
        return self.evidence_over(nonce, additional_evidence(self.devices(nonce)))

    def evidence_over(self, nonce: str, additional: str) -> CompositeEvidence:
        """Had the devices said this: well quoted."""
        quote = self.machine.quote(report_data(nonce, self.tee.public_jwk, additional))
        return CompositeEvidence(quote, compose_log(self.machine.ccel(), self.log), additional)

    def attest(self, kbs: Kbs) -> str:
        nonce = kbs.challenge()
        return kbs.attest(nonce, self.tee.public_jwk, self.evidence(nonce), None)

    def request(self, key: ec.EllipticCurvePrivateKey | None = None, names: tuple[str, ...] = NAMES[:1]) -> bytes:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
        return builder.sign(key or self.tls, SHA256()).public_bytes(Encoding.DER)


def policy(intel: IntelPki, nvidia: NvidiaPki, signer: str) -> dict[str, object]:
    reference = Machine(intel, nvidia).reference()
    pinned = {name: [reference[name]] for name in ("mr_td", "rtmr0", "rtmr1", "rtmr2", "td_attributes", "xfam")}
    return {
        "version": 1,
        "anchors": {"intel": intel.root_pem, "nvidia": nvidia.root_pem},
        "collateral": {"signer": signer, "max_age_s": 3600, "max_issue_age_s": 2592000, "min_tcb_eval": 1},
        "tdx": pinned
        | {"mr_config_id": "zero", "mr_owner": "zero", "mr_owner_config": "zero", "mr_seam": "unpinned"}
        | {"tcb_status": ["UpToDate"], "advisories": []},
        "events": {"config": "unpinned", "init-data": "unpinned", "engine": "unpinned", "gpu": "unpinned"}
        | {"model": [MODEL_HASH]},
        "gpu": gpu_policy(),
        "attestation_result": "not-appraised",
    }


def rule(phase: str, **limits: object) -> dict[str, object]:
    """One resource's rule; what `limits` does not name is unlimited."""
    return {"policy": "demo", "phase": phase} | UNLIMITED | limits


def found_broker(directory: Path, intel: IntelPki, nvidia: NvidiaPki, resources: Mapping[str, object]) -> None:
    """A broker's directory for the healthy machine: keys, collateral, and `resources` to their rules."""
    admin.init(directory, NAMES)
    (directory / "collateral" / "simulated.json").write_text(json.dumps(intel.collateral()))
    signer = (directory / "collateral-signer.b64").read_text().strip()
    rules = {
        "version": 1,
        "anchors": {"intel": intel.root_pem, "nvidia": nvidia.root_pem},
        "policies": {"demo": policy(intel, nvidia, signer)},
        "resources": dict(resources),
        "certificates": {"policy": "demo", "names": list(NAMES)},
        "lease": {"policy": "demo"},
    }
    (directory / "policy.yaml").write_text(yaml.safe_dump(rules))
