"""A guest that has booted, as far as its Evidence tells: the simulator's machine with every event measured."""

import base64
import time
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from unit.gateway.world import World

from antechamber.evidence import eventlog
from antechamber.evidence.anchors import Anchors, spki_sha256
from antechamber.evidence.bundle import Transcript, compose, gpu_nonce, report_data, sha384, transcript_text
from antechamber.evidence.collateral import TdxCollateral, seal_collateral
from antechamber.evidence.composite import CompositeEvidence, additional_evidence
from antechamber.evidence.gpu_chain import gpu_event, verify_devices
from antechamber.evidence.policy import Policy, load_policy
from antechamber.evidence.tdx import Quote
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.machine import Machine
from antechamber.simulator.nvidia import NvidiaPki

MODEL = "sha256:" + "ab" * 32


def spki(pem: bytes) -> bytes:
    key = x509.load_pem_x509_certificate(pem).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class Guest:
    def __init__(self, certificate_pem: bytes, *, age_s: int = 0) -> None:
        self.tls_spki = spki(certificate_pem)
        self.receipt_spki = Ed25519PrivateKey.generate().public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )  # fmt: skip
        self.machine = Machine(IntelPki(), NvidiaPki())
        self.signer = Ed25519PrivateKey.generate()
        self.time = int(time.time()) - age_s
        self.token = "token"  # the broker's EAR
        self.contents = {
            "config": sha384(b"config"), "init-data": sha384(bytes(48)), "engine": sha384(b"engine"), "model": MODEL,
            "gpu": self.gpu_event(), "tls": sha384(self.tls_spki), "receipt": sha384(self.receipt_spki),
            "released": sha384(self.tls_spki),
        }  # fmt: skip
        self.aael = b""
        for operation in (*eventlog.ORDER, eventlog.CAP):
            event = eventlog.AaelEvent(eventlog.DOMAIN, operation, self.contents[operation])
            self.machine.extend_rtmr3(event.digest())
            self.aael += event.encode()

    def gpu_event(self) -> str:
        """Of the GPUs that the machine has, over any nonce."""
        root = x509.load_pem_x509_certificate(self.machine.nvidia.root_pem.encode())
        anchors, devices = Anchors(None, spki_sha256(root)), self.machine.collect(bytes(32))
        return gpu_event(verify_devices(devices, nonce=bytes(32), anchors=anchors, now=self.time))

    def bundle(self, nonce: str) -> tuple[bytes, bytes]:
        """The bundle's text, and its quote."""
        devices = self.machine.collect(gpu_nonce(bytes.fromhex(nonce), self.tls_spki))
        sets = [TdxCollateral.build(self.machine.intel.collateral())]
        envelope = seal_collateral(sets, time=self.time, nonce=b"", key=self.signer)
        additional = additional_evidence(devices)
        transcript = Transcript(
            format="antechamber-transcript/1",
            nonce=nonce,
            tls=sha384(self.tls_spki),
            receipt=sha384(self.receipt_spki),
            model=MODEL,
            engine=self.contents["engine"],
            gpu_evidence=sha384(additional.encode()),
            collateral=sha384(envelope),
            attestation_result=sha384(self.token.encode()),
        )
        text = transcript_text(transcript)
        quote = Quote.parse(self.machine.quote(report_data(text))).raw
        evidence = CompositeEvidence(quote, eventlog.compose_log(self.machine.ccel(), self.aael), additional)
        served = compose(
            text=text, evidence=evidence, collateral=envelope, token=self.token, tls_spki=self.tls_spki,
            receipt_spki=self.receipt_spki,
        )  # fmt: skip
        return served, quote

    def policy(self, **tdx: Any) -> Policy:
        return load_policy(self.policy_text(**tdx))

    def policy_text(self, **tdx: Any) -> str:
        reference: Any = self.machine.reference()
        public = self.signer.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        registers = {
            n: [reference[n]] for n in ("mr_td", "rtmr0", "rtmr1", "rtmr2", "td_attributes", "xfam", "mr_seam")
        }
        zero = dict.fromkeys(("mr_config_id", "mr_owner", "mr_owner_config"), "zero")
        rules = {
            "version": 1,
            "anchors": {"intel": self.machine.intel.root_pem, "nvidia": self.machine.nvidia.root_pem},
            "collateral": {"signer": base64.b64encode(public).decode(),
                           "max_age_s": 86400, "max_issue_age_s": 2592000, "min_tcb_eval": 1},
            "tdx": {**registers, **zero, "tcb_status": ["UpToDate"], "advisories": [], **tdx},
            "events": {n: [self.contents[n]] for n in ("config", "init-data", "engine", "model", "gpu")},
            "gpu": {
                "count": 1, "arch": ["HOPPER"], "modes": ["spt"], "driver_min": "570.00", "vbios": "unpinned",
                "measurements": "not-appraised", "revocation": "not-appraised",
            },
            "attestation_result": "not-appraised",
        }  # fmt: skip
        return yaml.safe_dump(rules)


def booted(world: World) -> Guest:
    """A guest behind the gateway's own key."""
    guest = Guest(world.certificate)
    world.agent.compose = guest.bundle
    epoch = guest.bundle("00" * 16)
    world.agent.keep(*epoch)
    world.agent.quote = epoch[1]
    return guest


def url(world: World) -> str:
    return f"https://localhost:{world.port}"
