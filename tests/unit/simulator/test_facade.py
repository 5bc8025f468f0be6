"""What is planted in /proc, /sys and /run is what the production probe reads back; and who stands in for what."""

from pathlib import Path

import pytest

from antechamber.hardware.host import KernelHost
from antechamber.simulator.capabilities import Capabilities
from antechamber.simulator.facade import MEASUREMENTS, files
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.machine import Machine
from antechamber.simulator.nvidia import NvidiaPki
from antechamber.simulator.pieces import choose


def root(place: Path, machine: Machine) -> Path:
    """A root with an ordinary host's files, and the facade's laid over them."""
    for path, text in {
        "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu tdx_guest avx\n",
        "proc/swaps": "Filename\n/dev/zram0 partition 1 0 -2\n",
        "etc/os-release": "ID=debian\nVARIANT_ID=prod\n",
        f"{MEASUREMENTS}/rtmr3:sha384".lstrip("/"): "",
    }.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    for path, data in files(machine.facts(), machine.ccel(), place).items():
        target = place / str(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.encode() if isinstance(data, str) else data)
    return place


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("tdx_guest=false", "kernel=6.12.0", "cmdline=quiet init=/bin/sh", "core_pattern=core", "kexec_disabled=false"),
        ("swap=/dev/vdb", "credential=ssh.key", "registry_dwords=RmConfidentialCompute=2", "gpus=0"),
        ("gpus=8", "multi_gpu=protected-pcie", "ptrace_scope=0", "image_variant=prod"),
        ("ptrace_scope=-1",),
    ],
)
def test_facade_tells_the_probe_what_the_machine_is(tmp_path: Path, settings: tuple[str, ...]) -> None:
    machine = Machine(IntelPki(), NvidiaPki(), Knobs.parse([*settings, "persistenced=false"]))
    assert KernelHost(root(tmp_path, machine)).facts() == machine.facts()


def test_facade_has_the_flag_when_the_processor_has_no_flags(tmp_path: Path) -> None:
    machine = Machine(IntelPki(), NvidiaPki())
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    told = files(machine.facts(), b"", tmp_path)[Path("/proc/cpuinfo")]
    assert isinstance(told, str)
    assert told.startswith("flags\t\t: tdx_guest\n")


def test_choose_lets_only_what_is_missing_stand_in() -> None:
    pieces = choose(Capabilities(userns=True, fuse=False, cc=True, reasons={"fuse": "no /dev/fuse"}))
    assert pieces.stand_in == ("quotes", "measurements")
    assert pieces.lines()[0] == "quote device: stands in (no /dev/fuse)"
    assert pieces.lines()[3].startswith("host facts: real ABI")


def test_choose_lets_a_piece_stand_in_when_asked() -> None:
    pieces = choose(Capabilities(userns=True, fuse=True, cc=True, reasons={}), ("gpus",))
    assert pieces.stand_in == ("gpus",)
