"""Facts of the guest kernel that preflight judges. The only importer of psutil."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from antechamber.errors import HardwareUnavailable
from antechamber.ports import HostFacts, PciDevice

_LIMIT = 1 << 16  # bytes of a file: the first processor's flags, any of the others whole
_PERSISTENCED = "nvidia-persiste"  # the kernel keeps 15 bytes of a name
_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True)
class KernelHost:
    """HostProbe over /proc, /sys, /run and /etc. `root` is where those lie."""

    root: Path = Path("/")

    def facts(self) -> HostFacts:
        """All at once; "" or None where a kernel may lack it. Raises HardwareUnavailable `host.io`, `host.value`."""
        return HostFacts(
            tdx_guest=_flag(self._required("proc/cpuinfo"), "tdx_guest"),
            kernel=self._required("proc/sys/kernel/osrelease").strip(),
            rtmr_sysfs=(self.root / "sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384").exists(),
            cmdline=self._required("proc/cmdline").rstrip("\n"),
            swap=_swaps(self._text("proc/swaps") or ""),  # absent: a kernel without swap
            core_pattern=(self._text("proc/sys/kernel/core_pattern") or "").rstrip("\n"),
            ptrace_scope=self._number("proc/sys/kernel/yama/ptrace_scope"),
            kexec_disabled=self._number("proc/sys/kernel/kexec_load_disabled") in (None, 1),  # absent: no kexec
            credentials=(*self._names("run/credentials/@system"), *self._names("run/credentials/@encrypted")),
            pci=tuple(self._pci(name) for name in self._names("sys/bus/pci/devices")),
            persistenced=self._persistenced(),
            registry_dwords=_dwords(self._text("proc/driver/nvidia/params") or ""),
            image_variant=_os_release(self._text("etc/os-release") or "", "VARIANT_ID"),
            clocksource=(self._text("sys/devices/system/clocksource/clocksource0/current_clocksource") or "").strip(),
        )

    def in_memory(self, path: str) -> bool:
        """Whether `path`, symlinks resolved, lies on tmpfs or ramfs. A path to come counts by its parent."""
        real = Path(os.path.realpath(path))
        mounts = [p for p in psutil.disk_partitions(all=True) if real.is_relative_to(p.mountpoint)]
        # Of several at one place the last one mounted is seen.
        found = max(enumerate(mounts), key=lambda m: (len(Path(m[1].mountpoint).parts), m[0]), default=None)
        return found is not None and found[1].fstype in _MEMORY

    def _required(self, path: str) -> str:
        if (text := self._text(path)) is None:
            raise HardwareUnavailable("host.io", f"no /{path}", hint="mount /proc and /sys before the agent starts")
        return text

    def _text(self, path: str) -> str | None:
        """The first 64 KiB; None where there is no such file."""
        try:
            with (self.root / path).open("rb") as file:
                return file.read(_LIMIT).decode(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise HardwareUnavailable("host.io", f"/{path}: {e.strerror}", hint="run as root") from e

    def _number(self, path: str, base: int = 10) -> int | None:
        text = self._text(path)
        try:
            return None if text is None else int(text, base)
        except ValueError as e:
            seen = f"/{path} says {text!r}"
            raise HardwareUnavailable("host.value", seen, hint="this kernel is unknown to antechamber") from e

    def _names(self, path: str) -> tuple[str, ...]:
        try:
            return tuple(sorted(os.listdir(self.root / path)))
        except FileNotFoundError:
            return ()
        except OSError as e:
            raise HardwareUnavailable("host.io", f"/{path}: {e.strerror}", hint="run as root") from e

    def _pci(self, address: str) -> PciDevice:
        at = f"sys/bus/pci/devices/{address}"
        vendor, device, kind = (self._number(f"{at}/{name}", 16) for name in ("vendor", "device", "class"))
        if vendor is None or device is None or kind is None:
            raise HardwareUnavailable("host.io", f"no vendor, device or class in /{at}", hint="hot-plug must be off")
        return PciDevice(address, vendor, device, kind)

    def _persistenced(self) -> bool:
        """Whether the process that the daemon's file names lives and has its name."""
        pid = (self._text("run/nvidia-persistenced/nvidia-persistenced.pid") or "").strip()
        if not re.fullmatch(r"[1-9]\d{0,6}", pid, re.ASCII):
            return False
        try:
            process = psutil.Process(int(pid))
            return process.name().startswith(_PERSISTENCED) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def _flag(cpuinfo: str, flag: str) -> bool:
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return flags is not None and flag in flags[1].split()


def _swaps(text: str) -> tuple[str, ...]:
    return tuple(line.split()[0] for line in text.splitlines()[1:] if line.strip())


def _dwords(params: str) -> str:
    """RegistryDwords of all GPUs, and of single ones: either can turn protection off."""
    found = re.findall(r'^RegistryDwords(?:PerDevice)?:\s*"?([^"\n]*)"?\s*$', params, re.MULTILINE)
    return ";".join(text.strip() for text in found if text.strip())


def _os_release(text: str, name: str) -> str:
    found = re.findall(rf"^{name}=[\"']?([^\"'\n]*)[\"']?\s*$", text, re.MULTILINE)
    return found[-1] if found else ""
