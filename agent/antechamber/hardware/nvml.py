"""GPUs through NVML: mode, Evidence, ready state. The only importer of pynvml.

NVML stays initialised from the first call on: the ready state is reset when the last client goes.
Source: NVIDIA nvml.h 13 (ConfCompute); open-gpu-kernel-modules 595, conf_compute_api.c.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import Array, byref, c_uint8
from types import ModuleType
from typing import Literal, TypeVar

from antechamber.errors import HardwareUnavailable
from antechamber.evidence.composite import GpuEvidence
from antechamber.ports import GpuMode

T = TypeVar("T")

_ENVIRONMENTS: Mapping[int, Literal["unavailable", "sim", "prod"]] = {0: "unavailable", 1: "sim", 2: "prod"}
_MULTI_GPU: Mapping[int, Literal["none", "protected-pcie", "nvle"]] = {0: "none", 1: "protected-pcie", 2: "nvle"}
_CPUS: Mapping[int, Literal["none", "amd-sev", "intel-tdx", "amd-sev-snp", "amd-snp-vtom"]] = {
    0: "none",
    1: "amd-sev",
    2: "intel-tdx",
    3: "amd-sev-snp",
    4: "amd-snp-vtom",
}
_SWITCH: Mapping[int, bool] = {0: False, 1: True}
_ARCHITECTURES: Mapping[int, str] = {9: "HOPPER", 10: "BLACKWELL"}
_MAX_REPORT, _MAX_CHAIN = 0x2000, 0x1400  # bytes: NVML's buffers
_REFUSALS = {
    3: ("nvml.unsupported", "CC mode is off, or this GPU has none: set it on the host"),
    4: ("nvml.permission", "run as root"),
    9: ("nvml.driver", "load the nvidia driver; with CC mode off in a TD it refuses the GPU"),
    12: ("nvml.library", "install the driver's libnvidia-ml.so.1 in the image"),
    13: ("nvml.function", "use a driver of 550 or later"),
}
_REBOOT = "NVML does not take it back: stop the guest and boot it again"


class Nvml:
    """GpuSource over nvidia-ml-py."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: ModuleType | None = None
        self._failed = False

    def mode(self) -> GpuMode:
        """Raises HardwareUnavailable `nvml.*`."""
        with self._calls() as nvml:
            settings = nvml.c_nvmlSystemConfComputeSettings_v1_t()
            # The wrapper takes the pointer and passes the return code through, unlike all others.
            if code := nvml.nvmlSystemGetConfComputeSettings(byref(settings)):
                raise nvml.NVMLError(code)
            cpu = nvml.nvmlSystemGetConfComputeCapabilities().cpuCaps
        return GpuMode(
            environment=_known("environment", settings.environment, _ENVIRONMENTS),
            cc_feature=_known("ccFeature", settings.ccFeature, _SWITCH),
            devtools=_known("devToolsMode", settings.devToolsMode, _SWITCH),
            multi_gpu=_known("multiGpuMode", settings.multiGpuMode, _MULTI_GPU),
            cpu=_known("cpuCaps", cpu, _CPUS),
        )

    def count(self) -> int:
        """Raises HardwareUnavailable `nvml.*`."""
        with self._calls() as nvml:
            return int(nvml.nvmlDeviceGetCount())

    def collect(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """Evidence of every GPU over a nonce of 32 bytes; never again after a failure.

        A report that fails makes the driver tear CC down, so a second try tells nothing.
        Raises HardwareUnavailable `nvml.nonce`, `nvml.failed`, `nvml.size`, `nvml.value`, `nvml.*`.
        """
        if len(nonce) != 32:  # pynvml would pad a shorter one with zeros, or raise TypeError
            raise HardwareUnavailable("nvml.nonce", f"{len(nonce)} bytes, not 32", hint="use a nonce of 32 bytes")
        with self._calls() as nvml:
            if self._failed:
                raise HardwareUnavailable("nvml.failed", "an earlier report failed", hint=_REBOOT)
            self._failed = True
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            devices = tuple(_evidence(nvml, handle, nonce) for handle in handles)
            self._failed = False
        return devices

    def ready(self) -> bool:
        """Raises HardwareUnavailable `nvml.*`."""
        with self._calls() as nvml:
            return _known("ready state", nvml.nvmlSystemGetConfComputeGpusReadyState(), _SWITCH)

    def set_ready(self) -> None:
        """Once and for all GPUs. Raises HardwareUnavailable `nvml.ready`, `nvml.*`."""
        if self.ready():
            return
        with self._calls() as nvml:
            nvml.nvmlSystemSetConfComputeGpusReadyState(1)  # never 0: after 1 that is final until a driver reload
        if not self.ready():
            raise HardwareUnavailable("nvml.ready", "the GPUs did not become ready", hint=_REBOOT)

    @contextmanager
    def _calls(self) -> Iterator[ModuleType]:
        """NVML, initialised once; its errors translated."""
        with self._lock:
            nvml = self._loaded or _import()
            try:
                if self._loaded is None:
                    nvml.nvmlInit()
                    self._loaded = nvml
                yield nvml
            except nvml.NVMLError as e:
                code, hint = _REFUSALS.get(e.value, ("nvml.error", "look at the kernel's log for NVRM and Xid"))
                raise HardwareUnavailable(code, f"NVML {e.value}: {e}", hint=hint) from e


def _import() -> ModuleType:
    import pynvml  # noqa: PLC0415  # 70 ms that a command without GPUs does not pay

    module: ModuleType = pynvml
    return module


def _evidence(nvml: ModuleType, handle: object, nonce: bytes) -> GpuEvidence:
    arch = _known("architecture", nvml.nvmlDeviceGetArchitecture(handle), _ARCHITECTURES)
    chain = nvml.nvmlDeviceGetConfComputeGpuCertificate(handle)
    report = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(handle, nonce)
    return GpuEvidence(
        arch=arch,
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        report=_cut("report", report.attestationReport, report.attestationReportSize, _MAX_REPORT),
        certificate=_cut(
            "certificate chain", chain.attestationCertChain, chain.attestationCertChainSize, _MAX_CHAIN
        ).rstrip(b"\0"),
    )


def _cut(what: str, buffer: Array[c_uint8], size: int, limit: int) -> bytes:
    if not 0 < size <= limit:
        raise HardwareUnavailable("nvml.size", f"{what} of {size} bytes, not 1 to {limit}", hint=_REBOOT)
    return bytes(buffer)[:size]


def _known(what: str, number: int, names: Mapping[int, T]) -> T:
    """A number that this version knows: an unknown mode is never taken for a known one."""
    if number not in names:
        seen = f"{what} is {number}, known {', '.join(map(str, names))}"
        raise HardwareUnavailable("nvml.value", seen, hint="this driver is newer than antechamber: update it")
    return names[number]
