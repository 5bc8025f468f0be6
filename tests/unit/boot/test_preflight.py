"""Each fault of the machine has its code; all of them stand in one report."""

from dataclasses import replace
from typing import Any

import pytest

from antechamber.boot import preflight
from antechamber.boot.preflight import Fault
from antechamber.config import GuestConfig
from antechamber.errors import PlatformUnfit
from antechamber.ports import GpuMode, HostFacts, PciDevice

GPU = PciDevice("0000:01:00.0", 0x10DE, 0x2330, 0x030200)
NIC = PciDevice("0000:00:02.0", 0x1AF4, 0x1041, 0x020000)
FIT = HostFacts(
    tdx_guest=True,
    kernel="7.3.4+deb13-cloud-amd64",
    rtmr_sysfs=True,
    cmdline="ro roothash=" + "5a" * 32,
    swap=(),
    core_pattern="|/bin/false",
    ptrace_scope=2,
    kexec_disabled=True,
    credentials=(),
    pci=(GPU, NIC),
    persistenced=True,
    registry_dwords="",
    image_variant="prod",
    clocksource="tsc",
)
GUEST = GuestConfig(cmdline="ro roothash={roothash}")


def codes(facts: HostFacts, *, vendors: bool = True, count: int = 1) -> list[str]:
    return [
        f.code
        for f in (
            *preflight.kernel_faults(facts, GUEST),
            *preflight.exposure_faults(facts),
            *preflight.anchor_faults(facts, vendors=vendors),
            *preflight.inventory_faults(facts.pci, count),
            *preflight.driver_faults(facts),
        )
    ]


def test_preflight_finds_nothing_when_the_machine_is_fit() -> None:
    assert codes(FIT) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tdx_guest": False}, "host.tdx-guest"),
        ({"kernel": "6.12.117+deb13-amd64"}, "host.kernel"),
        ({"kernel": "6.9.99"}, "host.kernel"),
        ({"rtmr_sysfs": False}, "host.kernel"),
        ({"cmdline": FIT.cmdline + " init=/bin/sh"}, "host.cmdline"),
        ({"cmdline": "ro roothash=" + "5A" * 32}, "host.cmdline"),
        ({"cmdline": "ro roothash=" + "5a" * 32 + "\nx"}, "host.cmdline"),
        ({"cmdline": "rw roothash=" + "5a" * 32}, "host.cmdline"),
        ({"credentials": ("ssh.authorized_keys",)}, "host.credentials"),
        ({"swap": ("/dev/vdb",)}, "host.swap"),
        ({"core_pattern": "core"}, "host.core"),
        ({"core_pattern": "|/bin/false-not"}, "host.core"),
        ({"ptrace_scope": 1}, "host.ptrace"),
        ({"ptrace_scope": None}, "host.ptrace"),
        ({"kexec_disabled": False}, "host.kexec"),
        ({"pci": (NIC,)}, "gpu.inventory"),
        ({"pci": (GPU, replace(GPU, address="0000:02:00.0"))}, "gpu.inventory"),
        ({"pci": (GPU, replace(GPU, vendor=0x1002))}, "gpu.foreign"),
        ({"persistenced": False}, "gpu.persistenced"),
        ({"registry_dwords": "RmConfidentialCompute=0x5"}, "gpu.registry"),
    ],
)
def test_preflight_names_the_fault_when_one_thing_is_wrong(changes: dict[str, Any], code: str) -> None:
    assert codes(replace(FIT, **changes)) == [code]


def test_preflight_refuses_a_simulated_anchor_when_the_image_is_a_production_image() -> None:
    assert codes(FIT, vendors=False) == ["host.anchor"]
    assert codes(replace(FIT, image_variant="debug"), vendors=False) == []


class FakeGpus:
    """GpuSource with NVML's answers."""

    def __init__(self, mode: GpuMode, count: int = 1, ready: bool = False) -> None:
        self._mode, self._count, self._ready = mode, count, ready

    def mode(self) -> GpuMode:
        return self._mode

    def count(self) -> int:
        return self._count

    def ready(self) -> bool:
        return self._ready

    def collect(self, nonce: bytes) -> tuple[()]:
        return ()

    def set_ready(self) -> None:
        self._ready = True


ON = GpuMode("prod", True, False, "none", "intel-tdx")
PPCIE = GpuMode("prod", False, False, "protected-pcie", "intel-tdx")
NVLE = GpuMode("prod", True, False, "nvle", "intel-tdx")


@pytest.mark.parametrize(("gpus", "count"), [(FakeGpus(ON), 1), (FakeGpus(NVLE, 4), 4)])
def test_gate_opens_when_the_gpus_are_protected(gpus: FakeGpus, count: int) -> None:
    assert preflight.gpu_faults(gpus, count)[1] == []


@pytest.mark.parametrize(
    ("gpus", "count", "code"),
    [
        (FakeGpus(replace(ON, cc_feature=False)), 1, "gpu.cc-mode"),
        (FakeGpus(replace(ON, devtools=True)), 1, "gpu.cc-mode"),
        (FakeGpus(replace(ON, environment="sim")), 1, "gpu.cc-mode"),
        (FakeGpus(replace(ON, environment="unavailable")), 1, "gpu.cc-mode"),
        (FakeGpus(replace(ON, cpu="none")), 1, "gpu.cpu"),
        (FakeGpus(NVLE, 3), 4, "gpu.count"),
        (FakeGpus(ON, 2), 2, "gpu.multi"),
        (FakeGpus(PPCIE, 8), 8, "gpu.switches"),
        (FakeGpus(ON, ready=True), 1, "gpu.ready"),
    ],
)
def test_gate_stays_shut_when_a_gpu_is_not(gpus: FakeGpus, count: int, code: str) -> None:
    assert [f.code for f in preflight.gpu_faults(gpus, count)[1]] == [code]


def test_refuse_reports_every_fault_when_there_are_several() -> None:
    with pytest.raises(PlatformUnfit) as refused:
        preflight.refuse([Fault("host.swap", "swap on /dev/vdb", "no swap"), Fault("host.core", "cores", "no cores")])
    assert refused.value.code == "host.swap"
    assert "swap on /dev/vdb" in refused.value.detail
    assert "[host.core] cores" in refused.value.detail
    assert refused.value.hint == "no swap; no cores"
