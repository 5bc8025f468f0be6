"""What configfs-tsm and the registers answer to calls, right and wrong. The program asks; RULES is what it must hear.

It runs on real kernels (tests/vm) and on the simulator's look-alike (tests/system), which so keeps to its rules.
"""

import errno
import json
import os
from collections.abc import Callable
from typing import Any

REPORT = "/sys/kernel/config/tsm/report/"
REGISTERS = "/sys/devices/virtual/misc/tdx_guest/measurements/"

RULES: dict[str, Any] = {
    "provider": "tdx_guest\n",
    "generation": "0\n",
    "outblob before inblob": -errno.EINVAL,
    "65 bytes": -errno.EFBIG,
    "generation after 65": "1\n",
    "32 bytes": 32,
    "outblob of 32": -errno.EINVAL,
    "read inblob": -errno.EACCES,
    "write provider": -errno.EACCES,
    "same": -errno.EEXIST,
    "nested": -errno.EPERM,
    "create": -errno.EACCES,
    "unlink": -errno.EPERM,
    "rmdir": None,
    "32 into rtmr3": -errno.EINVAL,
    "write mrtd": -errno.EACCES,
    "48 into rtmr3": 48,
}
NO_REGISTERS = dict.fromkeys(("32 into rtmr3", "write mrtd", "48 into rtmr3"), -errno.ENOENT)  # before 6.16


def read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096).decode(errors="replace")
    finally:
        os.close(fd)


def write(path: str, data: bytes) -> int:
    fd = os.open(path, os.O_WRONLY)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def ask() -> dict[str, Any]:
    """An answer, or minus the errno, by what was asked."""
    said: dict[str, Any] = {}

    def attempt(name: str, call: Callable[..., Any], *args: Any) -> None:
        try:
            said[name] = call(*args)
        except OSError as e:
            said[name] = -e.errno

    entry = REPORT + "x"
    os.mkdir(entry)
    attempt("provider", read, entry + "/provider")
    attempt("generation", read, entry + "/generation")
    attempt("outblob before inblob", read, entry + "/outblob")
    attempt("65 bytes", write, entry + "/inblob", bytes(65))
    attempt("generation after 65", read, entry + "/generation")
    attempt("32 bytes", write, entry + "/inblob", bytes(32))
    attempt("outblob of 32", read, entry + "/outblob")
    attempt("read inblob", read, entry + "/inblob")
    attempt("write provider", write, entry + "/provider", b"y")
    attempt("same", os.mkdir, entry)
    attempt("nested", os.mkdir, entry + "/y")
    attempt("create", os.open, entry + "/auxblob", os.O_WRONLY | os.O_CREAT)
    attempt("unlink", os.unlink, entry + "/inblob")
    attempt("rmdir", os.rmdir, entry)
    attempt("32 into rtmr3", write, REGISTERS + "rtmr3:sha384", bytes(32))
    attempt("write mrtd", write, REGISTERS + "mrtd:sha384", bytes(48))
    attempt("48 into rtmr3", write, REGISTERS + "rtmr3:sha384", bytes(48))
    return said


if __name__ == "__main__":
    print(json.dumps(ask()))
