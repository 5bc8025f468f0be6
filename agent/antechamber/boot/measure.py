"""Stages 6, 7 and 9: the GPUs' verdict, the events in RTMR3, and the cap that ends the boot's rights."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from antechamber import log
from antechamber.boot.identity import Challenge, Clock, Identity
from antechamber.boot.preflight import Platform, gpu_faults, refuse
from antechamber.boot.settings import Settings
from antechamber.errors import AppraisalRefused, HardwareUnavailable
from antechamber.evidence import eventlog
from antechamber.evidence.anchors import Anchors
from antechamber.evidence.bundle import sha384
from antechamber.evidence.composite import additional_evidence
from antechamber.evidence.eventlog import AaelEvent
from antechamber.evidence.gpu_chain import GpuClaims, gpu_event, verify_devices
from antechamber.ports import GpuSource, MeasurementSource

_ZERO = bytes(48)
R = TypeVar("R")  # what the stage before releases


@dataclass(frozen=True, slots=True)
class GpuVerdict:
    """Every configured GPU proved itself over the challenge; `additional` is the exact text that the quote binds."""

    claims: tuple[GpuClaims, ...]
    additional: str

    @property
    def event(self) -> str:
        return gpu_event(self.claims)


@log.stage("gpus")
def gpus(settings: Settings, platform: Platform, source: GpuSource, asked: Challenge, clock: Clock) -> GpuVerdict:
    """One collection from every GPU over the challenge, verified locally; the mode is read again on both sides of it.

    Raises PlatformUnfit `gpu.*`, AppraisalRefused `gpu.*`, HardwareUnavailable `nvml.*`.
    """
    count = settings.config.gpus.count
    refuse(gpu_faults(source, count)[1])
    verdict = prove(source, count, asked.gpu_nonce, settings.config.trust.anchors(), clock.now())
    refuse(gpu_faults(source, count)[1])
    return verdict


def prove(source: GpuSource, count: int, nonce: bytes, anchors: Anchors, now: int) -> GpuVerdict:
    """Collect and verify, for boot and for every later verdict."""
    devices = source.collect(nonce)
    claims = verify_devices(devices, nonce=nonce, anchors=anchors, now=now)
    if len(claims) != count:
        raise AppraisalRefused(
            "gpu.count", f"evidence of {len(claims)} GPUs, {count} configured", hint="attach them all"
        )
    return GpuVerdict(claims, additional_evidence(devices))


class RuntimeLog:
    """The only writer of RTMR3: each event is in the file before it is in the register.

    A crash between the two leaves a log that does not replay, so the guest must reboot; and a register that
    somebody else extended never agrees with the log again.
    """

    def __init__(self, measurements: MeasurementSource, path: Path) -> None:
        """Raises HardwareUnavailable `rtmr.extended` where RTMR3 is not fresh."""
        if measurements.read("rtmr3") != _ZERO:
            raise HardwareUnavailable("rtmr.extended", "RTMR3 is not fresh", hint="reboot: a boot runs once")
        try:
            path.unlink(missing_ok=True)  # of an agent that ended before it extended anything
        except OSError as e:
            raise _unwritable(path, e) from e
        self._measurements, self._path = measurements, path
        self._ccel = measurements.ccel()
        self._records = b""
        self._register = _ZERO

    def extend(self, operation: str, content: str) -> None:
        """Log, extend, compare. Raises HardwareUnavailable `rtmr.*`."""
        event = AaelEvent(eventlog.DOMAIN, operation, content)
        self._append(event.encode())
        digest = event.digest()
        self._measurements.extend_rtmr3(digest)
        self._register = hashlib.sha384(self._register + digest).digest()
        if self._measurements.read("rtmr3") != self._register:
            raise HardwareUnavailable(
                "rtmr.race", "RTMR3 is not what the log says", hint="nothing else may extend RTMR3"
            )

    def _append(self, record: bytes) -> None:
        try:
            with open(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(record)
                file.flush()
                os.fsync(file.fileno())
        except OSError as e:
            raise _unwritable(self._path, e) from e
        self._records += record

    def cc_eventlog(self) -> bytes:
        """CCEL and our events, as the broker replays them."""
        return eventlog.compose_log(self._ccel, self._records)


def _unwritable(path: Path, error: OSError) -> HardwareUnavailable:
    return HardwareUnavailable("rtmr.log", f"{path}: {error.strerror}", hint="runtime_dir is a tmpfs that we may write")


@dataclass(frozen=True, slots=True)
class Measured:
    """The boot is in RTMR3. From here on there is no way back."""

    log: RuntimeLog
    engine_event: str
    gpu_event: str


@log.stage("measure")
def measure(
    settings: Settings, runtime: RuntimeLog, engine_event: str, verdict: GpuVerdict, keys: Identity
) -> Measured:
    """Extend what this boot is, in the order of `eventlog.ORDER`. Raises HardwareUnavailable `rtmr.*`."""
    contents = {
        "config": settings.config_event,
        "init-data": sha384(settings.mr_config_id),
        "engine": engine_event,
        "model": settings.config.model.hash,
        "gpu": verdict.event,
        "tls": keys.tls_event,
        "receipt": keys.receipt_event,
    }
    for operation in eventlog.ORDER:
        runtime.extend(operation, contents[operation])
    return Measured(runtime, engine_event, verdict.event)


@dataclass(frozen=True, slots=True)
class Capped(Generic[R]):
    """`released` is in RTMR3: what was released before it may be used, and no key is ever released again."""

    released: R


@log.stage("cap")
def cap(measured: Measured, released: R, keys: Identity) -> Capped[R]:
    """Extend `released`. Raises HardwareUnavailable `rtmr.*`."""
    measured.log.extend(eventlog.CAP, keys.tls_event)
    return Capped(released)
