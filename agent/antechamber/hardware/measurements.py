"""Measurement registers of the TD through sysfs (Linux 6.16+), and the CC event log that ACPI carries.

Each call to the kernel is a worker's, which ends at a deadline: Python repeats for ever what EINTR broke off.
Source: Linux ABI/testing/sysfs-devices-virtual-misc-tdx_guest; ACPI 6.5, CC Event Log ACPI Table.
"""

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from antechamber.errors import HardwareUnavailable
from antechamber.hardware.worker import within
from antechamber.ports import Register

REGISTERS = Path("/sys/devices/virtual/misc/tdx_guest/measurements")
CCEL = Path("/sys/firmware/acpi/tables/data/CCEL")
MAX_CCEL = 4 << 20  # bytes
_SIZE = 48  # bytes, SHA-384
_SILENT = "look at the kernel's log, and reboot: RTMR3 may have been extended"
_OLD_KERNEL = "boot kernel 6.16 or later in a TD, with tdx_guest loaded"


class RegisterFiles(Protocol):
    """The kernel's files by name. A write is one write at offset 0: it extends, or fails whole."""

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class KernelRegisters:
    """RegisterFiles under sysfs."""

    root: Path = REGISTERS

    def read(self, name: str) -> bytes:
        """At most one byte more than a register has."""
        return _read(self.root / name, _SIZE)

    def write(self, name: str, data: bytes) -> None:
        fd = os.open(self.root / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if (written := os.write(fd, data)) != len(data):
                raise OSError(errno.EIO, f"took {written} of {len(data)} bytes", name)
        finally:
            os.close(fd)


class SysfsMeasurements:
    """MeasurementSource over sysfs."""

    def __init__(self, files: RegisterFiles | None = None, *, ccel: Path = CCEL, deadline_s: float = 10.0) -> None:
        self._files, self._ccel = KernelRegisters() if files is None else files, ccel
        self._deadline_s = deadline_s

    def read(self, register: Register) -> bytes:
        """48 bytes. Raises HardwareUnavailable `rtmr.absent`, `rtmr.io`, `rtmr.timeout`, `rtmr.size`, `tsm.worker`."""
        value = self._ask(register, lambda: self._files.read(_name(register)))
        if len(value) != _SIZE:
            raise HardwareUnavailable("rtmr.size", f"{register} has {len(value)} bytes, not 48", hint=_OLD_KERNEL)
        return value

    def extend_rtmr3(self, digest: bytes) -> None:
        """Extend, and require that nobody else did. Raises HardwareUnavailable `rtmr.*`, `rtmr.race`."""
        if len(digest) != _SIZE:  # the kernel refuses it too, but only after the caller wrote its log
            raise HardwareUnavailable("rtmr.size", f"a digest of {len(digest)} bytes, not 48", hint="extend by SHA-384")

        def extend() -> bytes:
            self._files.write(_name("rtmr3"), digest)
            return b""

        before = self.read("rtmr3")
        self._ask("rtmr3", extend)
        if self.read("rtmr3") != hashlib.sha384(before + digest).digest():
            seen = "RTMR3 is not SHA384(before || digest) after one extend"
            raise HardwareUnavailable("rtmr.race", seen, hint="nothing else may extend RTMR3: find it, and reboot")

    def _ask(self, register: Register, call: Callable[[], bytes]) -> bytes:
        def work() -> bytes:
            try:
                return call()
            except OSError as e:
                raise _unavailable(register, e) from e

        late = HardwareUnavailable("rtmr.timeout", f"{register}: no answer before the deadline", hint=_SILENT)
        return within(self._deadline_s, late, work)

    def ccel(self) -> bytes | None:
        """Padding included; None where the platform has none. Raises HardwareUnavailable `ccel.size`, `ccel.io`."""
        try:
            raw = _read(self._ccel, MAX_CCEL)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise HardwareUnavailable("ccel.io", f"{e.strerror}: {e.filename}", hint="run as root") from e
        if len(raw) > MAX_CCEL or not raw:
            seen = f"CCEL is empty or has more than {MAX_CCEL} bytes"
            raise HardwareUnavailable("ccel.size", seen, hint="this firmware's event log is not one")
        return raw


def _name(register: Register) -> str:
    return register if register == "mrconfigid" else f"{register}:sha384"


def _unavailable(register: str, e: OSError) -> HardwareUnavailable:
    if e.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return HardwareUnavailable("rtmr.absent", f"no {register}: {e.strerror}", hint=_OLD_KERNEL)
    return HardwareUnavailable("rtmr.io", f"{register}: {e.strerror}", hint="run as root; look at the kernel's log")


def _read(path: Path, limit: int) -> bytes:
    """All of a file; of a larger one, `limit` + 1 bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        raw = b""
        while len(raw) <= limit and (chunk := os.read(fd, limit + 1 - len(raw))):
            raw += chunk
        return raw
    finally:
        os.close(fd)
