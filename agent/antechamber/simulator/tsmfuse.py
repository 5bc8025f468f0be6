"""FUSE views of a machine: configfs-tsm's `report/`, and the TD's `measurements/`, with the kernel's rules.

Left over: a write of nothing (EFAULT, and `generation` goes up) never reaches a FUSE file system.
Source: Linux drivers/virt/coco/guest/{report,tsm-mr}.c; ABI/testing/configfs-tsm-report.
"""

import errno
import os
import stat
import time
from dataclasses import dataclass, field

from antechamber.simulator.protocol import Ask

MAX_INBLOB = 64
_READ_ONLY, _WRITE_ONLY = ("outblob", "generation", "provider"), ("inblob",)
_REPORT_FILES = (*_READ_ONLY, *_WRITE_ONLY)
_RTMRS = tuple(f"rtmr{i}:sha384" for i in range(4))
_FIXED = ("mrtd:sha384", "mrconfigid", "mrowner", "mrownerconfig")


@dataclass(slots=True)
class _Entry:
    """One directory of `report/`."""

    generation: int = 0
    inblob: bytes = b""
    outblob: bytes = b""
    made_at: int = -1  # the generation that `outblob` answers


@dataclass(slots=True)
class _Open:
    """An open file. Attributes are made once per open, and written at close, as configfs does it."""

    entry: _Entry
    name: str
    made: bytes | None = None
    written: bytearray = field(default_factory=bytearray)
    wrote: bool = False


class ReportTree:
    """`/sys/kernel/config/tsm/report`, without FUSE: raises OSError as the kernel would."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.entries: dict[str, _Entry] = {}

    def mkdir(self, path: str) -> None:
        name = path.strip("/")
        if "/" in name:
            raise OSError(errno.EPERM, "nested")
        if name in self.entries:
            raise OSError(errno.EEXIST, name)
        self.entries[name] = _Entry()

    def rmdir(self, path: str) -> None:
        parts = self.parts(path)
        if len(parts) != 1:
            raise OSError(errno.ENOTDIR, path)
        del self.entries[parts[0]]

    def parts(self, path: str) -> list[str]:
        """[] or [entry] or [entry, file]. Raises OSError ENOENT."""
        parts = path.strip("/").split("/") if path != "/" else []
        if (
            (parts and parts[0] not in self.entries)
            or len(parts) > 2
            or (len(parts) == 2 and parts[1] not in _REPORT_FILES)
        ):
            raise OSError(errno.ENOENT, path)
        return parts

    def open(self, path: str, flags: int) -> _Open:
        """Raises OSError EACCES where the mode of the file says so: also for root."""
        entry, name = self.parts(path)
        access = flags & os.O_ACCMODE
        if access != (os.O_WRONLY if name in _WRITE_ONLY else os.O_RDONLY):
            raise OSError(errno.EACCES, path)
        return _Open(self.entries[entry], name)

    def read(self, file: _Open) -> bytes:
        if file.made is None:
            file.made = self._make(file.entry, file.name)
        return file.made

    def write(self, file: _Open, data: bytes, offset: int) -> int:
        """Raises OSError EFBIG; `generation` goes up at close even so."""
        file.wrote = True
        if offset + len(data) > MAX_INBLOB:
            raise OSError(errno.EFBIG, file.name)
        file.written[offset:] = data
        return len(data)

    def close(self, file: _Open) -> None:
        if file.wrote:
            file.entry.inblob = bytes(file.written) or file.entry.inblob
            file.entry.generation += 1

    def _make(self, entry: _Entry, name: str) -> bytes:
        if name == "generation":
            return b"%d\n" % entry.generation
        if name == "provider":
            return b"tdx_guest\n"
        if not entry.inblob:
            raise OSError(errno.EINVAL, "no inblob")
        if entry.made_at != entry.generation:  # a quote already made is kept; a failed one is tried again
            entry.outblob, entry.made_at = bytes.fromhex(self._ask("quote", entry.inblob.hex())), entry.generation
        return entry.outblob


class MeasurementTree:
    """`/sys/devices/virtual/misc/tdx_guest/measurements`, without FUSE."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def read(self, name: str) -> bytes:
        """48 bytes."""
        if name in ("mrowner", "mrownerconfig"):
            return bytes(48)
        return bytes.fromhex(self._ask("read", name.removesuffix(":sha384")))

    def write(self, name: str, data: bytes, offset: int) -> int:
        """Extend. Raises OSError EINVAL unless it is 48 bytes at 0."""
        if name not in _RTMRS:
            raise OSError(errno.EACCES, name)
        if offset or len(data) != 48:
            raise OSError(errno.EINVAL, name)
        self._ask("extend", name.removesuffix(":sha384"), data.hex())
        return len(data)


def _attributes(mode: int, size: int = 0) -> dict[str, int]:
    now = time.time_ns()
    times = {"st_ctime": now, "st_mtime": now, "st_atime": now}
    return {"st_mode": mode, "st_nlink": 1, "st_uid": 0, "st_gid": 0, "st_size": size} | times


def _directory() -> dict[str, int]:
    return _attributes(stat.S_IFDIR | 0o755) | {"st_nlink": 2}


class ReportFiles:
    """A ReportTree as mfusepy calls it: whatever a class has of its Operations."""

    use_ns = True

    def __init__(self, ask: Ask) -> None:
        self._tree, self._files = ReportTree(ask), dict[int, _Open]()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        parts = self._tree.parts(path)
        if len(parts) < 2:
            return _directory()
        mode = 0o200 if parts[1] in _WRITE_ONLY else 0o444
        return _attributes(stat.S_IFREG | mode, 4096 if parts[1] in ("generation", "provider") else 0)

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(_REPORT_FILES if self._tree.parts(path) else self._tree.entries)]

    def mkdir(self, path: str, mode: int) -> None:
        self._tree.mkdir(path)

    def rmdir(self, path: str) -> None:
        self._tree.rmdir(path)

    def unlink(self, path: str) -> None:
        raise OSError(errno.EPERM, path)

    def create(self, path: str, mode: int, flags: int) -> int:
        raise OSError(errno.EACCES, path)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        """As configfs and sysfs: O_TRUNC changes nothing."""

    def open(self, path: str, flags: int) -> int:
        number = max(self._files, default=0) + 1
        self._files[number] = self._tree.open(path, flags)
        return number

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return self._tree.read(self._files[fh])[offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return self._tree.write(self._files[fh], data, offset)

    def release(self, path: str, fh: int) -> None:
        self._tree.close(self._files.pop(fh))


class MeasurementFiles:
    """A MeasurementTree as mfusepy calls it."""

    use_ns = True

    def __init__(self, ask: Ask) -> None:
        self._tree = MeasurementTree(ask)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        name = path.strip("/")
        if not name:
            return _directory()
        if name not in (*_FIXED, *_RTMRS):
            raise OSError(errno.ENOENT, path)
        return _attributes(stat.S_IFREG | (0o644 if name in _RTMRS else 0o444), 48)

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *_FIXED, *_RTMRS]

    def open(self, path: str, flags: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY and path.strip("/") not in _RTMRS:
            raise OSError(errno.EACCES, path)
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        """As configfs and sysfs: O_TRUNC changes nothing."""

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return self._tree.read(path.strip("/"))[offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return self._tree.write(path.strip("/"), data, offset)


def serve_report(ask: Ask, place: str) -> None:
    """Mount over `place` and answer until unmounted. In a process of its own."""
    _serve(ReportFiles(ask), place)


def serve_measurements(ask: Ask, place: str) -> None:
    """Mount over `place` and answer until unmounted. In a process of its own."""
    _serve(MeasurementFiles(ask), place)


def _serve(files: ReportFiles | MeasurementFiles, place: str) -> None:
    import mfusepy  # an extra; loading it looks for libfuse

    # Single-threaded, as the kernel's one lock; direct I/O, or the page cache would answer for the machine.
    mfusepy.FUSE(files, place, foreground=True, nothreads=True, direct_io=True, fsname="simulated")
