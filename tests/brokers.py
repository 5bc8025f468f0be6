"""A real broker over TLS on loopback, and a simulated guest that speaks to it with the real client."""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPSConnection
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from antechamber.broker import admin, server
from antechamber.broker.decisions import Broker
from antechamber.broker.jwe import TeeKey
from antechamber.broker.kbs import Kbs
from antechamber.broker.messages import PREFIX
from antechamber.broker.transport import Transport
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
from antechamber.simulator.deployment import UNLIMITED
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.machine import Machine
from antechamber.simulator.nvidia import NvidiaPki

MODEL_HASH = "sha256:" + "11" * 32
MODEL_KEY = "default/model-key/demo"
KEY = bytes(range(32))
NAMES = ("localhost", "127.0.0.1")


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

    def measure(self) -> None:
        any_ = "sha384:" + "22" * 48
        contents = {"config": any_, "init-data": any_, "engine": any_, "model": MODEL_HASH, "gpu": self.gpu_event}
        for operation, content in (contents | {"tls": self.tls_event, "receipt": any_}).items():
            self.extend(operation, content)

    def cap(self) -> None:
        self.extend(CAP, self.tls_event)

    def devices(self, nonce: str) -> tuple[GpuEvidence, ...]:
        return self.machine.collect(device_nonce(nonce, self.tee.public_jwk))

    def evidence(self, nonce: str) -> CompositeEvidence:
        additional = additional_evidence(self.devices(nonce))
        quote = self.machine.quote(report_data(nonce, self.tee.public_jwk, additional))
        return CompositeEvidence(quote, compose_log(self.machine.ccel(), self.log), additional)

    def attest(self, kbs: Kbs) -> str:
        nonce = kbs.challenge()
        return kbs.attest(nonce, self.tee.public_jwk, self.evidence(nonce), None)

    def request(self, key: ec.EllipticCurvePrivateKey | None = None, names: tuple[str, ...] = NAMES[:1]) -> bytes:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
        return builder.sign(key or self.tls, SHA256()).public_bytes(Encoding.DER)


@dataclass
class Rig:
    """A broker's directory, the broker that runs from it, and the vendors' simulated PKIs."""

    directory: Path
    broker: Broker
    url: str
    intel: IntelPki
    nvidia: NvidiaPki

    def guest(self, **knobs: object) -> Guest:
        guest = Guest(Machine(self.intel, self.nvidia, Knobs(**knobs)))  # type: ignore[arg-type]
        guest.measure()
        return guest

    def kbs(self, ca: Path | None = None, timeout_s: float = 10) -> Kbs:
        return Kbs(Transport(self.url, str(ca or self.directory / "broker-ca.pem"), timeout_s))

    def raw(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """An HTTP client that is not ours."""
        context = ssl.create_default_context(cafile=str(self.directory / "broker-ca.pem"))
        connection = HTTPSConnection(self.url.removeprefix("https://"), context=context, timeout=10)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body or None, sent)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def rewrite(self, **changes: object) -> None:
        """Edit the rules file."""
        path = self.directory / "policy.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))

    def decisions(self) -> list[tuple[str, str]]:
        return [(r.decision, r.code) for r in self.broker.audit.records()]


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
        "gpu": {
            "count": 1,
            "arch": ["HOPPER"],
            "modes": ["spt"],
            "driver_min": "570.00",
            "vbios": "unpinned",
            "measurements": "not-appraised",
            "revocation": "not-appraised",
        },
        "attestation_result": "not-appraised",
    }


def rule(phase: str, **limits: object) -> dict[str, object]:
    """One resource's rule; what `limits` does not name is unlimited."""
    return {"policy": "demo", "phase": phase} | UNLIMITED | limits


@contextmanager
def running(directory: Path) -> Iterator[Rig]:
    """A broker with a model key and rules for the simulated machine."""
    intel, nvidia = IntelPki(), NvidiaPki()
    admin.init(directory, NAMES)
    (directory / "collateral" / "simulated.json").write_text(json.dumps(intel.collateral()))
    signer = (directory / "collateral-signer.b64").read_text().strip()
    rules = {
        "version": 1,
        "anchors": {"intel": intel.root_pem, "nvidia": nvidia.root_pem},
        "policies": {"demo": policy(intel, nvidia, signer)},
        "resources": {
            MODEL_KEY: rule("boot"),
            "default/any/1": rule("any"),
            "default/missing/1": rule("boot"),
        },
        "certificates": {"policy": "demo", "names": list(NAMES)},
        "lease": {"policy": "demo"},
    }
    (directory / "policy.yaml").write_text(yaml.safe_dump(rules))
    with serving(directory, intel, nvidia) as rig:
        for path in (MODEL_KEY, "default/any/1", "default/unruled/1"):
            rig.broker.store.put(path, KEY)
        yield rig


@contextmanager
def serving(directory: Path, intel: IntelPki, nvidia: NvidiaPki) -> Iterator[Rig]:
    """The broker of a directory: another run of it, where one was there before."""
    broker, settings = admin.load_broker(directory)
    context = server.tls_context(str(directory / settings.tls.certificate), str(directory / settings.tls.key))
    loop, listening = asyncio.new_event_loop(), threading.Event()
    found: list[str] = []

    async def serve() -> None:
        runner, url = await server.start(broker, "127.0.0.1:0", context)
        found.append(url)
        stop = asyncio.Event()
        loop.stop_broker = stop.set  # type: ignore[attr-defined]
        listening.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    listening.wait(10)
    try:
        yield Rig(directory, broker, found[0], intel, nvidia)
    finally:
        loop.call_soon_threadsafe(loop.stop_broker)  # type: ignore[attr-defined]
        thread.join(10)
        loop.close()


def cookie_of(headers: dict[str, str]) -> str:
    return headers["set-cookie"].partition(";")[0]


def auth_body(tee: str = "tdx", version: str = "0.4.0") -> bytes:
    return json.dumps({"version": version, "tee": tee, "extra-params": {}}).encode()


__all__ = ["KEY", "MODEL_KEY", "PREFIX", "Guest", "Rig", "auth_body", "cookie_of", "running"]
