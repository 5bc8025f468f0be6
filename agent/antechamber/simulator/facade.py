"""The files by which a kernel says what it is: what lies where, and how it gets there inside our mount namespace.

Files that exist are covered by a bind mount. Where a name is missing, the nearest directory that exists is covered by
one that has it, and links to everything else that was there.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from antechamber.ports import HostFacts
from antechamber.simulator import linux

REPORT = Path("/sys/kernel/config/tsm/report")
MEASUREMENTS = Path("/sys/devices/virtual/misc/tdx_guest/measurements")
CCEL = Path("/sys/firmware/acpi/tables/data/CCEL")
PERSISTENCED = Path("/run/nvidia-persistenced")
_KERNEL = Path("/proc/sys/kernel")
_PCI = Path("/sys/bus/pci/devices")
_CREDENTIALS = Path("/run/credentials")
_DRIVER = Path("/proc/driver/nvidia")
_YAMA = _KERNEL / "yama"
_HIDDEN = (_PCI, _CREDENTIALS, PERSISTENCED, _DRIVER, _YAMA, REPORT, MEASUREMENTS)  # nothing real shows there
_COVERED = (_KERNEL, Path("/run"))  # links to the rest, even if each name is there


def files(facts: HostFacts, ccel: bytes, real: Path = Path("/")) -> dict[Path, str | bytes]:
    """Content by path, of what `facts` says; `real` is where the host's own files are read."""
    plain = {
        "/proc/cmdline": facts.cmdline,
        f"{_KERNEL}/osrelease": facts.kernel,
        f"{_KERNEL}/core_pattern": facts.core_pattern,
        f"{_KERNEL}/kexec_load_disabled": str(int(facts.kexec_disabled)),
        "/sys/devices/system/clocksource/clocksource0/current_clocksource": facts.clocksource,
        **{f"{_CREDENTIALS}/@system/{name}": "simulated" for name in facts.credentials},
    }
    if facts.ptrace_scope is not None:
        plain[f"{_YAMA}/ptrace_scope"] = str(facts.ptrace_scope)
    if (real / "proc/swaps").exists():  # else this kernel has no swap
        rows = [f"{device} partition 1048572 0 -2" for device in facts.swap]
        plain["/proc/swaps"] = "\n".join(["Filename Type Size Used Priority", *rows])
    if facts.registry_dwords:
        plain[f"{_DRIVER}/params"] = f'RegistryDwords: "{facts.registry_dwords}"'
    for device in facts.pci:
        numbers = {
            "vendor": f"{device.vendor:#06x}",
            "device": f"{device.device:#06x}",
            "class": f"{device.pci_class:#08x}",
        }
        plain |= {f"{_PCI}/{device.address}/{name}": number for name, number in numbers.items()}
    found: dict[Path, str | bytes] = {Path(path): text + "\n" for path, text in plain.items()}
    found[Path("/proc/cpuinfo")] = _cpuinfo((real / "proc/cpuinfo").read_text(), facts.tdx_guest)
    if (release := real / "etc/os-release").exists():
        found[Path("/etc/os-release")] = _os_release(release.read_text(), facts.image_variant)
    return found | {CCEL: ccel}


def _cpuinfo(real: str, tdx_guest: bool) -> str:
    """Every processor's flags, with or without `tdx_guest`."""
    bare = re.sub(r"(?<=\s)tdx_guest(?=\s)", "", real)
    if not tdx_guest:
        return bare
    told = re.sub(r"^(flags\s*:.*)$", r"\1 tdx_guest", bare, flags=re.MULTILINE)
    return told if told != bare else f"flags\t\t: tdx_guest\n\n{bare}"  # not x86


def _os_release(real: str, variant: str) -> str:
    kept = [line for line in real.splitlines() if not line.startswith("VARIANT_ID=")]
    return "\n".join([*kept, f'VARIANT_ID="{variant}"', ""])


@dataclass(slots=True)
class Facade:
    """Mounts under construction. `stage` is a directory for a tmpfs of ours, seen only inside the namespace."""

    stage: Path
    _count: int = field(default=0)

    def erect(self, content: Mapping[Path, str | bytes], directories: Iterable[Path]) -> None:
        """Put every file in its place, and have every directory there, empty. Raises OSError."""
        linux.mount("tmpfs", str(self.stage), "tmpfs", linux.NOSUID | linux.NODEV, "mode=0755")
        wanted: dict[Path, str | bytes | None] = {**content, **dict.fromkeys(directories)}
        covers: dict[Path, dict[Path, str | bytes | None]] = {place: {} for place in _COVERED if place.is_dir()}
        for place in _HIDDEN:
            if place.is_dir() and not any(place.is_relative_to(c) for c in covers):
                covers[place] = {}
        for path, data in wanted.items():
            cover = next((c for c in covers if path.is_relative_to(c)), None)
            if cover is None and data is not None and path.is_file():
                self._bind_file(path, data)
            else:
                covers.setdefault(cover or _nearest(path), {})[path] = data
        for place, planted in covers.items():
            self._cover(place, planted)

    def _new(self, kind: str) -> Path:
        self._count += 1
        return self.stage / f"{kind}-{self._count}"

    def _bind_file(self, path: Path, data: str | bytes) -> None:
        source = self._new("file")
        _write(source, data)
        linux.bind(str(source), str(path.resolve()))

    def _cover(self, place: Path, planted: Mapping[Path, str | bytes | None]) -> None:
        """A directory of ours over `place`, with links to what was there and is not planted."""
        cover = self._new("cover")
        cover.mkdir()
        for path, data in planted.items():
            self._plant(place, cover, path, data)
        if place not in _HIDDEN:
            behind = self._new("behind")
            behind.mkdir()
            linux.bind(str(place), str(behind))
            self._link(place, cover, behind)
        linux.bind(str(cover), str(place))

    def _plant(self, place: Path, cover: Path, path: Path, data: str | bytes | None) -> None:
        target = cover / path.relative_to(place)
        if data is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, data)

    def _link(self, place: Path, cover: Path, behind: Path) -> None:
        """Links for names that were there; into directories that both have, one level at a time."""
        for name in os.listdir(behind):
            ours, theirs = cover / name, behind / name
            if place / name in _HIDDEN:
                ours.mkdir(exist_ok=True)
            elif ours.is_dir() and theirs.is_dir() and not theirs.is_symlink():
                self._link(place / name, ours, theirs)
            elif not os.path.lexists(ours):
                ours.symlink_to(theirs)


def _nearest(path: Path) -> Path:
    """The closest directory above that exists."""
    return next(p for p in path.parents if p.is_dir())


def _write(path: Path, data: str | bytes) -> None:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
