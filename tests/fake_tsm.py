"""configfs-tsm and the TD's registers by the kernel's rules, with knobs for attacks. Entries are real directories."""

import errno
import hashlib
import mmap
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PEM = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
_REGISTERS = ("mrtd:sha384", "mrconfigid", *(f"rtmr{i}:sha384" for i in range(4)))
_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")


def tdx_quote(report_data: bytes, *, version: int = 4) -> bytes:
    """A quote of the right form, signed by nobody."""
    header = struct.pack("<HHI4s16s20s", version, 2, 0x81, bytes(4), _QE_VENDOR, bytes(20))
    body = bytes(520) + report_data
    if version == 5:
        body = struct.pack("<HI", 3, 648) + body + bytes(64)
    chain = struct.pack("<HI", 5, 3 * len(_PEM)) + 3 * _PEM
    certified = bytes(384 + 64) + struct.pack("<H", 32) + bytes(32) + chain
    data = bytes(128) + struct.pack("<HI", 6, len(certified)) + certified
    return header + body + struct.pack("<I", len(data)) + data


@dataclass
class FakeTsm:
    """What the kernel answers. Pass `entry` to ConfigfsTsm. It runs in the worker: what it changes stays there."""

    provider: bytes = b"tdx_guest\n"
    rival_writes: int = 0  # of another process between our write and our read
    lost_write: bool = False  # committed at close, result ignored: nobody is told
    outblob_errors: tuple[int, ...] = ()  # errnos of the first reads
    outblob: bytes | None = None  # instead of a quote over what was written
    padding: int = 0
    version: int = 4
    hang_s: float = 0.0  # a host that never answers
    mkdir_error: int = 0
    rmdir_error: int = 0
    generation: int = 0
    inblob: bytes = b""
    reads: int = 0

    @contextmanager
    def entry(self, path: Path) -> Iterator["FakeTsm"]:
        if self.mkdir_error:
            raise OSError(self.mkdir_error, "mkdir", str(path))
        path.mkdir()
        try:
            yield self
        finally:
            if not self.rmdir_error:
                path.rmdir()

    def read(self, attribute: str) -> bytes:
        if attribute == "provider":
            return self.provider
        if attribute == "generation":
            return b"%d\n" % self.generation
        if attribute != "outblob":
            raise OSError(errno.EACCES if attribute == "inblob" else errno.ENOENT, "Permission denied", attribute)
        return self._outblob()

    def write(self, attribute: str, data: bytes) -> None:
        if attribute != "inblob":
            raise OSError(errno.EACCES, "Permission denied", attribute)
        if not self.lost_write:
            self.generation += 1
        self.generation += self.rival_writes
        if len(data) > 64:
            raise OSError(errno.EFBIG, "File too large", attribute)
        self.inblob = data

    def _outblob(self) -> bytes:
        if len(self.inblob) != 64:
            raise OSError(errno.EINVAL, "Invalid argument", "outblob")
        time.sleep(self.hang_s)
        self.reads += 1
        if self.reads <= len(self.outblob_errors):
            code = self.outblob_errors[self.reads - 1]
            raise OSError(code, errno.errorcode[code], "outblob")
        if self.outblob is not None:
            return self.outblob
        return tdx_quote(self.inblob, version=self.version) + bytes(self.padding)


class FakeRegisters:
    """RTMRs as sysfs gives them: a write of 48 bytes extends, another is EINVAL, other registers are read-only.

    The values are in memory that a fork shares, as the kernel's are: each call comes from a worker.
    """

    def __init__(self, *, rival: bytes | None = None, deaf: bool = False, error: int = 0, hang_s: float = 0.0) -> None:
        self.rival = rival  # another process extends by this, right after us
        self.deaf = deaf  # says yes, extends nothing
        self.error = error
        self.hang_s = hang_s  # a write that does not return
        self._values = mmap.mmap(-1, 48 * len(_REGISTERS))

    def _place(self, name: str) -> slice:
        if name not in _REGISTERS:
            raise OSError(errno.ENOENT, "No such file or directory", name)
        first = 48 * _REGISTERS.index(name)
        return slice(first, first + 48)

    def read(self, name: str) -> bytes:
        return self._values[self._place(name)]

    def write(self, name: str, data: bytes) -> None:
        time.sleep(self.hang_s)
        if self.error:
            raise OSError(self.error, "error", name)
        if not name.startswith("rtmr"):
            raise OSError(errno.EACCES, "Permission denied", name)
        if len(data) != 48:
            raise OSError(errno.EINVAL, "Invalid argument", name)
        place = self._place(name)
        for digest in () if self.deaf else (data, self.rival) if self.rival is not None else (data,):
            self._values[place] = hashlib.sha384(self._values[place] + digest).digest()
