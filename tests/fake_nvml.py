"""libnvidia-ml.so.1 as real pynvml sees it: C functions by name, numbers back. Knobs for every mode and failure."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field

SUCCESS, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, VERSION_MISMATCH = 0, 2, 3, 4, 25


@dataclass
class FakeLibrary:
    """Put it at `pynvml.nvmlLib`. `failures`: return codes by function. `missing`: symbols that it lacks."""

    environment: int = 2
    cc_feature: int = 1
    devtools: int = 0
    multi_gpu: int = 0
    cpu: int = 2
    gpus: int = 1
    architecture: int = 9
    report: bytes = b"report"
    report_size: int | None = None
    chain: bytes = b"-----PEM-----\n\0"
    chain_size: int | None = None
    deaf: bool = False  # accepts the ready state and stays as it is
    ready: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    calls: list[str] = field(default_factory=list)
    nonces: list[bytes] = field(default_factory=list)

    def __getattr__(self, name: str) -> Callable[..., int]:
        functions = {
            "nvmlInitWithFlags": lambda flags: SUCCESS,
            "nvmlErrorString": lambda code: b"fake",
            "nvmlDeviceGetCount_v2": lambda n: _set(n, self.gpus),
            "nvmlDeviceGetHandleByIndex_v2": lambda i, handle: SUCCESS,
            "nvmlDeviceGetArchitecture": lambda handle, n: _set(n, self.architecture),
            "nvmlDeviceGetUUID": lambda handle, buffer, size: _text(buffer, b"GPU-0001"),
            "nvmlSystemGetConfComputeSettings": self._settings,
            "nvmlSystemGetConfComputeCapabilities": self._capabilities,
            "nvmlSystemGetConfComputeGpusReadyState": lambda n: _set(n, self.ready),
            "nvmlSystemSetConfComputeGpusReadyState": self._set_ready,
            "nvmlDeviceGetConfComputeGpuCertificate": self._certificate,
            "nvmlDeviceGetConfComputeGpuAttestationReport": self._report,
        }
        if name not in functions or name in self.missing:
            raise AttributeError(name)

        def call(*args: object) -> int:
            self.calls.append(name)
            return self.failures.get(name) or functions[name](*args)

        return call

    def _settings(self, pointer: object) -> int:
        settings = _at(pointer)  # a struct by value, without byref, crashes a real library
        if settings.version != 0x1000014:
            return VERSION_MISMATCH
        settings.environment, settings.ccFeature = self.environment, self.cc_feature
        settings.devToolsMode, settings.multiGpuMode = self.devtools, self.multi_gpu
        return SUCCESS

    def _capabilities(self, pointer: object) -> int:
        _at(pointer).cpuCaps = self.cpu
        return SUCCESS

    def _set_ready(self, state: ctypes.c_uint) -> int:
        if self.ready and not state.value:
            return INVALID_ARGUMENT
        self.ready = self.ready if self.deaf else state.value
        return SUCCESS

    def _certificate(self, handle: object, pointer: object) -> int:
        chain = _at(pointer)
        ctypes.memmove(chain.attestationCertChain, self.chain, len(self.chain))
        chain.attestationCertChainSize = len(self.chain) if self.chain_size is None else self.chain_size
        return SUCCESS

    def _report(self, handle: object, pointer: object) -> int:
        report = _at(pointer)
        self.nonces.append(bytes(report.nonce))
        ctypes.memmove(report.attestationReport, self.report, len(self.report))
        report.attestationReportSize = len(self.report) if self.report_size is None else self.report_size
        return SUCCESS


def _at(pointer: object) -> ctypes.Structure:
    structure = pointer._obj  # type: ignore[attr-defined]  # what byref points to
    assert isinstance(structure, ctypes.Structure)
    return structure


def _set(pointer: object, value: int) -> int:
    pointer._obj.value = value  # type: ignore[attr-defined]
    return SUCCESS


def _text(buffer: ctypes.Array[ctypes.c_char], text: bytes) -> int:
    buffer.value = text
    return SUCCESS
