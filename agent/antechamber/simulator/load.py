"""Whole releases, one after another and several at a time, each by a guest that the broker has never seen."""

import queue
import resource
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

from cryptography import x509

from antechamber.broker.messages import COOKIE, PREFIX, Attestation, Challenge, Request, parse_token
from antechamber.errors import AgentError
from antechamber.evidence.anchors import Anchors, spki_sha256
from antechamber.evidence.composite import CompositeEvidence, additional_evidence, report_data
from antechamber.evidence.eventlog import compose_log
from antechamber.evidence.gpu_chain import gpu_event, verify_devices
from antechamber.simulator import nvidia
from antechamber.simulator.deployment import MODEL_KEY
from antechamber.simulator.fleet import KEY, Guest
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.machine import Machine
from antechamber.simulator.nvidia import NvidiaPki

_TIMEOUT_S = 60


class LoadFailed(AgentError):
    """A release that the broker should have made, and did not."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A guest that has booted up to /auth: nothing that can be done before the nonce is left to do."""

    guest: Guest
    log: bytes  # cc_eventlog


class Park:
    """The GPUs of a data centre, and guests that boot on them: GPU number `i` for guest `i`, from the start again."""

    def __init__(self, intel: IntelPki, pki: NvidiaPki) -> None:
        self._intel, self._pki = intel, pki
        self._gpus: dict[int, tuple[nvidia.SimGpuIdentity, str]] = {}

    def guests(self, count: int, numbers: range) -> list[Ready]:
        """Guests on the GPUs of these numbers, in turn; each with fresh keys, so with an RTMR3 of its own."""
        return [self._guest(numbers[i % len(numbers)]) for i in range(count)]

    def _guest(self, number: int) -> Ready:
        if number not in self._gpus:
            device = self._pki.device(number)
            self._gpus[number] = device, self._event(device)
        device, event = self._gpus[number]
        machine = Machine(self._intel, self._pki, Knobs(gpus=0))
        machine.gpus = (device,)
        guest = Guest(machine)
        guest.measure(event)
        return Ready(guest, compose_log(machine.ccel(), guest.log))

    def _event(self, device: nvidia.SimGpuIdentity) -> str:
        nonce, root = bytes(32), x509.load_pem_x509_certificate(self._pki.root_pem.encode())
        evidence = nvidia.evidence(device, nvidia.report(device, nonce))
        anchors = Anchors(None, spki_sha256(root))
        return gpu_event(verify_devices([evidence], nonce=nonce, anchors=anchors, now=int(time.time())))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The broker, as every guest of the image knows it."""

    port: int
    context: ssl.SSLContext

    @classmethod
    def of(cls, port: int, ca: Path) -> "Endpoint":
        return cls(port, ssl.create_default_context(cafile=str(ca)))


def release(endpoint: Endpoint, ready: Ready) -> None:
    """A new connection, /auth, Evidence over its nonce, /attest, the model key, opened and compared.

    Raises LoadFailed `load.status`, `load.key`; OSError, HTTPException, AgentError for an answer that is none.
    """
    guest = ready.guest
    connection = HTTPSConnection("127.0.0.1", endpoint.port, context=endpoint.context, timeout=_TIMEOUT_S)
    try:
        challenge, cookie = _exchange(connection, "POST", "/auth", Request("0.4.0", "tdx").build())
        nonce = Challenge.parse(challenge).nonce
        additional = additional_evidence(guest.devices(nonce))
        quote = guest.machine.quote(report_data(nonce, guest.tee.public_jwk, additional))
        evidence = CompositeEvidence(quote, ready.log, additional)
        body = Attestation.of(nonce, guest.tee.public_jwk, evidence, None).build()
        token, _ = _exchange(connection, "POST", "/attest", body, cookie)
        parse_token(token)
        sealed, _ = _exchange(connection, "GET", f"/resource/{MODEL_KEY}", b"", cookie)
        with guest.tee.open(sealed) as key:
            if bytes(key) != KEY:
                raise LoadFailed("load.key", "another key than the owner's", hint="a fault of the broker")
    finally:
        connection.close()


def _exchange(connection: HTTPSConnection, method: str, path: str, body: bytes, cookie: str = "") -> tuple[bytes, str]:
    headers = {"Content-Type": "application/json"} | ({"Cookie": cookie} if cookie else {})
    connection.request(method, PREFIX + path, body or None, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise LoadFailed("load.status", f"{path}: {answer.status} {content[:300]!r}", hint="read the broker's log")
    fresh = (answer.getheader("Set-Cookie") or "").partition(";")[0]
    return content, fresh if fresh.startswith(COOKIE) else ""


@dataclass(frozen=True, slots=True)
class Series:
    """What a number of releases took, by this process's clock."""

    latencies_s: tuple[float, ...]  # ascending
    wall_s: float
    cpu_s: float  # of this process: near `wall_s`, it was the bottleneck

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.wall_s

    def percentile_ms(self, percent: int) -> float:
        """Nearest rank."""
        rank = -(-percent * len(self.latencies_s) // 100)
        return self.latencies_s[max(rank, 1) - 1] * 1000


def run(endpoint: Endpoint, guests: Sequence[Ready], clients: int) -> Series:
    """Every guest once, `clients` at a time; each next one starts when one is done.

    Raises the first failure as LoadFailed `load.status`, `load.key`, `load.failed`.
    """
    waiting: queue.SimpleQueue[Ready] = queue.SimpleQueue()
    for guest in guests:
        waiting.put(guest)
    latencies: list[float] = []
    failures: list[Exception] = []

    def work() -> None:
        while not failures:
            try:
                ready = waiting.get_nowait()
            except queue.Empty:
                return
            start = time.perf_counter()
            try:
                release(endpoint, ready)
            except (AgentError, OSError, HTTPException) as e:
                failures.append(e)
            latencies.append(time.perf_counter() - start)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    wall, cpu = time.perf_counter(), _cpu_s()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, cpu = time.perf_counter() - wall, _cpu_s() - cpu
    if failures:
        if isinstance(failures[0], LoadFailed):
            raise failures[0]
        raise LoadFailed("load.failed", repr(failures[0])[:300], hint="read the broker's log") from failures[0]
    return Series(tuple(sorted(latencies)), wall, cpu)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
