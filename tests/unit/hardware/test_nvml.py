import subprocess
import sys
from collections.abc import Callable
from ctypes.util import find_library

import pynvml
import pytest
from fake_nvml import INVALID_ARGUMENT, NO_PERMISSION, NOT_SUPPORTED, FakeLibrary

from antechamber.errors import HardwareUnavailable
from antechamber.hardware.nvml import Nvml
from antechamber.ports import GpuMode

NONCE = bytes(range(32))
SETTINGS = "nvmlSystemGetConfComputeSettings"
REPORT = "nvmlDeviceGetConfComputeGpuAttestationReport"

Load = Callable[[FakeLibrary | None], Nvml]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Nvml over real pynvml over a library of ours. Source: pynvml keeps the library and its symbols in globals."""
    monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 0)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    def put(library: FakeLibrary | None) -> Nvml:
        monkeypatch.setattr(pynvml, "nvmlLib", library)
        return Nvml()

    return put


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(HardwareUnavailable) as refused:
        call()
    return refused.value.code


@pytest.mark.parametrize(
    ("library", "mode", "protected"),
    [
        (FakeLibrary(), GpuMode("prod", True, False, "none", "intel-tdx"), True),
        (FakeLibrary(multi_gpu=2), GpuMode("prod", True, False, "nvle", "intel-tdx"), True),
        (FakeLibrary(cc_feature=0, multi_gpu=1), GpuMode("prod", False, False, "protected-pcie", "intel-tdx"), True),
        (FakeLibrary(environment=1, devtools=1), GpuMode("sim", True, True, "none", "intel-tdx"), False),
        (FakeLibrary(environment=0, cc_feature=0, cpu=0), GpuMode("unavailable", False, False, "none", "none"), False),
        (FakeLibrary(devtools=1), GpuMode("prod", True, True, "none", "intel-tdx"), False),
        (FakeLibrary(cc_feature=0, multi_gpu=2), GpuMode("prod", False, False, "nvle", "intel-tdx"), False),
        (FakeLibrary(environment=1), GpuMode("sim", True, False, "none", "intel-tdx"), False),
    ],
    ids=["CC", "NVLE", "PPCIE", "devtools", "off", "devtools in prod", "NVLE without CC", "simulation"],
)
def test_nvml_mode_says_what_the_settings_say(load: Load, library: FakeLibrary, mode: GpuMode, protected: bool) -> None:
    assert load(library).mode() == mode
    assert mode.protected is protected


@pytest.mark.parametrize(
    "library",
    [
        FakeLibrary(environment=3),
        FakeLibrary(cc_feature=2),
        FakeLibrary(devtools=2),
        FakeLibrary(multi_gpu=3),
        FakeLibrary(cpu=5),
    ],
    ids=["environment", "feature", "devtools", "multi", "cpu"],
)
def test_nvml_mode_refuses_unknown_numbers(load: Load, library: FakeLibrary) -> None:
    assert refusal(load(library).mode) == "nvml.value"


def test_nvml_mode_refuses_a_failed_call_that_pynvml_lets_through(load: Load) -> None:
    assert refusal(load(FakeLibrary(failures={SETTINGS: NOT_SUPPORTED})).mode) == "nvml.unsupported"


@pytest.mark.parametrize(
    ("library", "code"),
    [
        (FakeLibrary(missing=(SETTINGS,)), "nvml.function"),
        (FakeLibrary(failures={SETTINGS: NO_PERMISSION}), "nvml.permission"),
        (FakeLibrary(failures={"nvmlInitWithFlags": 9}), "nvml.driver"),
        (FakeLibrary(failures={SETTINGS: 999}), "nvml.error"),
        (FakeLibrary(failures={SETTINGS: 12345}), "nvml.error"),
    ],
)
def test_nvml_translates_what_the_library_says(load: Load, library: FakeLibrary, code: str) -> None:
    assert refusal(load(library).mode) == code


@pytest.mark.skipif(find_library("nvidia-ml") is not None, reason="this machine has NVML")
def test_nvml_refuses_where_there_is_no_library() -> None:
    """In a process of its own: a library with that name that is loaded once stays loaded."""
    program = """
from antechamber.errors import HardwareUnavailable
from antechamber.hardware.nvml import Nvml
try:
    Nvml().count()
except HardwareUnavailable as e:
    print(e.code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "nvml.library\n"


def test_nvml_initialises_once_and_never_shuts_down(load: Load) -> None:
    library = FakeLibrary()
    nvml = load(library)
    nvml.mode()
    nvml.count()
    nvml.ready()
    assert library.calls.count("nvmlInitWithFlags") == 1
    assert "nvmlShutdown" not in library.calls


@pytest.mark.parametrize(("number", "arch"), [(9, "HOPPER"), (10, "BLACKWELL")])
def test_nvml_collects_from_every_gpu(load: Load, number: int, arch: str) -> None:
    library = FakeLibrary(gpus=8, architecture=number)
    devices = load(library).collect(NONCE)
    assert len(devices) == 8
    assert {(d.arch, d.uuid, d.report, d.certificate) for d in devices} == {
        (arch, "GPU-0001", b"report", b"-----PEM-----\n")
    }
    assert library.nonces == [NONCE] * 8


def test_nvml_collects_nothing_without_gpus(load: Load) -> None:
    assert load(FakeLibrary(gpus=0)).collect(NONCE) == ()


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_nvml_collect_refuses_a_nonce_of_another_size(load: Load, size: int) -> None:
    library = FakeLibrary()
    assert refusal(lambda: load(library).collect(bytes(size))) == "nvml.nonce"
    assert REPORT not in library.calls


@pytest.mark.parametrize(
    ("library", "code"),
    [
        (FakeLibrary(report_size=0), "nvml.size"),
        (FakeLibrary(report_size=0x2001), "nvml.size"),
        (FakeLibrary(chain_size=0), "nvml.size"),
        (FakeLibrary(chain_size=0x1401), "nvml.size"),
        (FakeLibrary(architecture=13), "nvml.value"),
        (FakeLibrary(failures={REPORT: 999}), "nvml.error"),
    ],
    ids=["no report", "long report", "no chain", "long chain", "Rubin", "failed"],
)
def test_nvml_collect_refuses_and_never_asks_again(load: Load, library: FakeLibrary, code: str) -> None:
    nvml = load(library)
    assert refusal(lambda: nvml.collect(NONCE)) == code
    asked = len(library.nonces)
    library.failures.clear()
    assert refusal(lambda: nvml.collect(NONCE)) == "nvml.failed"
    assert len(library.nonces) == asked


def test_nvml_set_ready_sets_once_and_reads_back(load: Load) -> None:
    library = FakeLibrary()
    nvml = load(library)
    assert not nvml.ready()
    nvml.set_ready()
    nvml.set_ready()
    assert nvml.ready()
    assert library.calls.count("nvmlSystemSetConfComputeGpusReadyState") == 1


def test_nvml_set_ready_refuses_when_the_state_stays(load: Load) -> None:
    assert refusal(load(FakeLibrary(deaf=True)).set_ready) == "nvml.ready"


def test_nvml_set_ready_refuses_after_a_fatal_failure(load: Load) -> None:
    library = FakeLibrary(failures={"nvmlSystemSetConfComputeGpusReadyState": INVALID_ARGUMENT})
    assert refusal(load(library).set_ready) == "nvml.error"


def test_nvml_ready_refuses_an_unknown_state(load: Load) -> None:
    assert refusal(load(FakeLibrary(ready=2)).ready) == "nvml.value"
