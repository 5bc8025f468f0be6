"""Adapters at the ports, over a simulated machine, where the real ABI cannot be had. Same rules, same codes."""

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from antechamber.errors import HardwareUnavailable
from antechamber.evidence.composite import GpuEvidence
from antechamber.hardware.host import KernelHost
from antechamber.hardware.measurements import SysfsMeasurements
from antechamber.hardware.nvml import Nvml
from antechamber.hardware.tsm import ConfigfsTsm
from antechamber.ports import GpuMode, Hardware, HostFacts, PciDevice, Register
from antechamber.simulator.machine import NOT_SUPPORTED, Machine, NvmlRefusal
from antechamber.simulator.protocol import CPUS, ENVIRONMENTS, MULTI_GPU, Ask, in_process

Piece = Literal["quotes", "measurements", "gpus", "host"]
PIECES: tuple[Piece, ...] = ("quotes", "measurements", "gpus", "host")
_HINT = "this is the simulator: look at its knobs"


@dataclass(frozen=True, slots=True)
class StandInQuotes:
    """QuoteSource."""

    ask: Ask

    def quote(self, report_data: bytes) -> bytes:
        """Raises HardwareUnavailable `tsm.report-data`, `tsm.io`."""
        if len(report_data) != 64:
            raise HardwareUnavailable("tsm.report-data", f"{len(report_data)} bytes, not 64", hint="pad with zeros")
        try:
            return bytes.fromhex(self.ask("quote", report_data.hex()))
        except OSError as e:
            raise HardwareUnavailable("tsm.io", str(e.strerror), hint=_HINT) from e


@dataclass(frozen=True, slots=True)
class StandInMeasurements:
    """MeasurementSource."""

    ask: Ask

    def read(self, register: Register) -> bytes:
        """Raises HardwareUnavailable `rtmr.io`."""
        try:
            return bytes.fromhex(self.ask("read", register))
        except OSError as e:
            raise HardwareUnavailable("rtmr.io", f"{register}: {e.strerror}", hint=_HINT) from e

    def extend_rtmr3(self, digest: bytes) -> None:
        """Raises HardwareUnavailable `rtmr.size`, `rtmr.io`."""
        if len(digest) != 48:
            raise HardwareUnavailable("rtmr.size", f"a digest of {len(digest)} bytes, not 48", hint="extend by SHA-384")
        try:
            self.ask("extend", "rtmr3", digest.hex())
        except OSError as e:
            raise HardwareUnavailable("rtmr.io", f"rtmr3: {e.strerror}", hint=_HINT) from e

    def ccel(self) -> bytes | None:
        return bytes.fromhex(self.ask("ccel"))


@dataclass(frozen=True, slots=True)
class StandInGpus:
    """GpuSource."""

    ask: Ask

    def mode(self) -> GpuMode:
        environment, feature, devtools, multi_gpu, cpu = self._mode()[:5]
        return GpuMode(ENVIRONMENTS[environment], bool(feature), bool(devtools), MULTI_GPU[multi_gpu], CPUS[cpu])

    def count(self) -> int:
        return self._mode()[6]

    def collect(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """Raises HardwareUnavailable `nvml.nonce`, `nvml.unsupported`, `nvml.error`."""
        if len(nonce) != 32:
            raise HardwareUnavailable("nvml.nonce", f"{len(nonce)} bytes, not 32", hint="use a nonce of 32 bytes")
        return tuple(self._evidence(index, nonce) for index in range(self.count()))

    def ready(self) -> bool:
        return bool(self._mode()[7])

    def set_ready(self) -> None:
        """Raises HardwareUnavailable `nvml.unsupported`, `nvml.error`."""
        if not self.ready():
            self._call("set-ready", "1")

    def _evidence(self, index: int, nonce: bytes) -> GpuEvidence:
        uuid, arch = self._call("gpu", str(index)).split()[:2]
        report, chain = self._call("report", str(index), nonce.hex()), self._call("certificate", str(index))
        return GpuEvidence(arch, uuid, bytes.fromhex(report), bytes.fromhex(chain))

    def _mode(self) -> list[int]:
        return [int(word) for word in self._call("mode").split()]

    def _call(self, *words: str) -> str:
        try:
            return self.ask(*words)
        except NvmlRefusal as e:
            code = "nvml.unsupported" if e.code == NOT_SUPPORTED else "nvml.error"
            raise HardwareUnavailable(code, f"NVML {e.code}", hint=_HINT) from e
        except OSError as e:
            raise HardwareUnavailable("nvml.driver", str(e.strerror), hint=_HINT) from e


@dataclass(frozen=True, slots=True)
class StandInHost:
    """HostProbe. What lies in memory is asked of the real kernel."""

    ask: Ask

    def facts(self) -> HostFacts:
        return parse_facts(self.ask("facts"))

    def in_memory(self, path: str) -> bool:
        return KernelHost().in_memory(os.path.realpath(path))


def parse_facts(text: str) -> HostFacts:
    """Of the daemon's JSON."""
    said: dict[str, Any] = json.loads(text)
    said["pci"] = tuple(PciDevice(**device) for device in said["pci"])
    for name in ("swap", "credentials"):
        said[name] = tuple(said[name])
    return HostFacts(**said)


def hardware(ask: Ask | Machine, stand_in: Collection[Piece] = PIECES) -> Hardware:
    """The production adapters, but for the pieces that stand in."""
    if isinstance(ask, Machine):
        ask = in_process(ask)
    return Hardware(
        quotes=StandInQuotes(ask) if "quotes" in stand_in else ConfigfsTsm(),
        measurements=StandInMeasurements(ask) if "measurements" in stand_in else SysfsMeasurements(),
        gpus=StandInGpus(ask) if "gpus" in stand_in else Nvml(),
        host=StandInHost(ask) if "host" in stand_in else KernelHost(),
    )
