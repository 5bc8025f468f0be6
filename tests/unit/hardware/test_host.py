import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from antechamber.errors import HardwareUnavailable
from antechamber.hardware.host import KernelHost
from antechamber.ports import PciDevice

FILES = {
    "proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme tdx_guest ht\n\nprocessor\t: 1\n",
    "proc/sys/kernel/osrelease": "6.18.44-cloud-amd64\n",
    "proc/cmdline": "root=/dev/dm-0 quiet\n",
    "proc/swaps": "Filename\t\t\t\tType\t\tSize\tUsed\tPriority\n",
    "proc/sys/kernel/core_pattern": "|/bin/false\n",
    "proc/sys/kernel/yama/ptrace_scope": "3\n",
    "proc/sys/kernel/kexec_load_disabled": "1\n",
    "proc/driver/nvidia/params": 'ResmanDebugLevel: 4294967295\nRegistryDwords: "RmEnableProtectedPcie=0x1"\n',
    "sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384": "",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
    "sys/bus/pci/devices/0000:01:00.0/device": "0x2331\n",
    "sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n",
    "etc/os-release": 'NAME="Debian"\nVARIANT_ID="prod"\n',
    "run/empty": "",
}


def write(root: Path, **changed: str | None) -> KernelHost:
    """A guest's files. A keyword names a file by its last part; None removes it."""
    for path, text in FILES.items():
        content = changed.get(Path(path).name.replace(":", "_").replace("-", "_"), text)
        if content is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content)
    return KernelHost(root)


def test_host_says_what_the_kernel_says(tmp_path: Path) -> None:
    facts = write(tmp_path).facts()
    assert facts.tdx_guest
    assert facts.kernel == "6.18.44-cloud-amd64"
    assert facts.rtmr_sysfs
    assert facts.cmdline == "root=/dev/dm-0 quiet"
    assert (facts.swap, facts.core_pattern, facts.ptrace_scope) == ((), "|/bin/false", 3)
    assert facts.kexec_disabled
    assert facts.credentials == ()
    assert facts.pci == (PciDevice("0000:01:00.0", 0x10DE, 0x2331, 0x030200),)
    assert not facts.persistenced
    assert facts.registry_dwords == "RmEnableProtectedPcie=0x1"
    assert (facts.image_variant, facts.clocksource) == ("prod", "tsc")


def test_host_facts_hold_on_this_machine() -> None:
    facts = KernelHost().facts()
    assert facts.kernel == os.uname().release
    assert facts.cmdline


@pytest.mark.parametrize("flags", ["fpu ht", "fpu tdx_guest_x", ""])
def test_host_is_no_td_without_the_flag(tmp_path: Path, flags: str) -> None:
    assert not write(tmp_path, cpuinfo=f"processor : 0\nbugs : tdx_guest\nflags : {flags}\n").facts().tdx_guest


def test_host_says_what_a_kernel_lacks(tmp_path: Path) -> None:
    lacks = dict.fromkeys(("swaps", "core_pattern", "ptrace_scope", "kexec_load_disabled", "params", "os_release"))
    facts = write(tmp_path, rtmr3_sha384=None, current_clocksource=None, **lacks).facts()
    assert (facts.swap, facts.core_pattern, facts.ptrace_scope, facts.kexec_disabled) == ((), "", None, True)
    assert (facts.registry_dwords, facts.image_variant, facts.clocksource) == ("", "", "")
    assert not facts.rtmr_sysfs


def test_host_says_what_is_wrong(tmp_path: Path) -> None:
    swaps = FILES["proc/swaps"] + "/dev/zram0 partition 1 0 5\n/swap file 1 0 1\n"
    host = write(tmp_path, swaps=swaps, kexec_load_disabled="0\n", ptrace_scope="0\n", core_pattern="core\n")
    for path in ("run/credentials/@system/ssh.authorized_keys", "run/credentials/@encrypted/x"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    facts = host.facts()
    assert facts.swap == ("/dev/zram0", "/swap")
    assert not facts.kexec_disabled
    assert (facts.ptrace_scope, facts.core_pattern) == (0, "core")
    assert facts.credentials == ("ssh.authorized_keys", "x")


@pytest.mark.parametrize(
    ("params", "dwords"),
    [
        ('RegistryDwords: ""\nRegistryDwordsPerDevice: ""\n', ""),
        ('RegistryDwords: ""\nRegistryDwordsPerDevice: "pci=0000:01:00.0;RmX=1"\n', "pci=0000:01:00.0;RmX=1"),
        ('RegistryDwords: "A=1"\nRegistryDwordsPerDevice: "B=2"\n', "A=1;B=2"),
    ],
)
def test_host_sees_the_driver_settings_of_every_device(tmp_path: Path, params: str, dwords: str) -> None:
    assert write(tmp_path, params=params).facts().registry_dwords == dwords


@pytest.mark.parametrize("name", ["cpuinfo", "osrelease", "cmdline"])
def test_host_refuses_where_proc_is_not_mounted(tmp_path: Path, name: str) -> None:
    with pytest.raises(HardwareUnavailable) as refused:
        write(tmp_path, **{name: None}).facts()
    assert refused.value.code == "host.io"


@pytest.mark.parametrize(("name", "text"), [("ptrace_scope", "on"), ("kexec_load_disabled", ""), ("vendor", "nvidia")])
def test_host_refuses_what_is_no_number(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(HardwareUnavailable) as refused:
        write(tmp_path, **{name: text}).facts()
    assert refused.value.code == "host.value"


def test_host_refuses_a_device_that_vanishes(tmp_path: Path) -> None:
    with pytest.raises(HardwareUnavailable) as refused:
        write(tmp_path, vendor=None).facts()
    assert refused.value.code == "host.io"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the daemon's name."""
    program = tmp_path / "nvidia-persistenced"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    process = subprocess.Popen([program, "60"])
    yield process
    process.kill()
    process.wait()


def put_pid(root: Path, text: str) -> None:
    (root / "run/nvidia-persistenced").mkdir(parents=True)
    (root / "run/nvidia-persistenced/nvidia-persistenced.pid").write_text(text)


def test_host_sees_persistenced_alive(tmp_path: Path, daemon: "subprocess.Popen[bytes]") -> None:
    host = write(tmp_path)
    put_pid(tmp_path, f"{daemon.pid}\n")
    assert host.facts().persistenced


def test_host_does_not_take_a_dead_daemon_for_alive(tmp_path: Path, daemon: "subprocess.Popen[bytes]") -> None:
    host = write(tmp_path)
    put_pid(tmp_path, f"{daemon.pid}\n")
    daemon.kill()
    while psutil.Process(daemon.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert not host.facts().persistenced
    daemon.wait()
    assert not host.facts().persistenced


@pytest.mark.parametrize("text", ["", "0", "-1", "x", str(os.getpid()), "9999999999999999", "1 2"])
def test_host_does_not_take_another_process_for_the_daemon(tmp_path: Path, text: str) -> None:
    host = write(tmp_path)
    put_pid(tmp_path, text)
    assert not host.facts().persistenced


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no tmpfs at /dev/shm")
def test_host_tells_memory_from_disk(tmp_path: Path) -> None:
    host = KernelHost()
    assert host.in_memory("/dev/shm")
    assert host.in_memory("/dev/shm/antechamber/to/come")
    assert not host.in_memory("/proc")
    assert not host.in_memory("/dev/shm/../../proc")


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no tmpfs at /dev/shm")
def test_host_follows_symlinks_before_it_judges(tmp_path: Path) -> None:
    (tmp_path / "looks-like-memory").symlink_to("/proc")
    (tmp_path / "memory").symlink_to("/dev/shm")
    assert KernelHost().in_memory(str(tmp_path / "memory"))
    assert not KernelHost().in_memory(str(tmp_path / "looks-like-memory/1"))
