"""The few system calls that Python 3.11 does not wrap. Raises OSError as the kernel says."""

import ctypes
import os
import signal

NEWNS, NEWUSER = 0x00020000, 0x10000000
BIND, REC, PRIVATE, NOSUID, NODEV = 0x1000, 0x4000, 0x40000, 0x2, 0x4
_SET_PDEATHSIG, _SET_NAME, _DETACH = 1, 15, 2


def unshare(flags: int) -> None:
    _require(_libc().unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    arguments = [text.encode() or None for text in (source, target, kind, options)]
    _require(_libc().mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3]), target)


def bind(source: str, target: str) -> None:
    """With everything mounted below: a user namespace may not take mounts apart."""
    mount(source, target, flags=BIND | REC)


def unmount(target: str) -> None:
    """Lazily: what is open there goes on."""
    _require(_libc().umount2(target.encode(), _DETACH), target)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send us this signal when our parent ends."""
    _require(_libc().prctl(_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0), "prctl")


def rename_process(name: str) -> None:
    """What /proc/PID/comm says: the kernel keeps 15 bytes."""
    _require(_libc().prctl(_SET_NAME, name.encode(), 0, 0, 0), "prctl")


def enter_namespace() -> None:
    """A mount namespace of our own; with a user namespace, unless we may mount without. Single-threaded only."""
    try:
        unshare(NEWNS)
    except PermissionError:
        user, group = os.getuid(), os.getgid()
        unshare(NEWUSER | NEWNS)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as out:
                out.write(text)
    mount("", "/", flags=REC | PRIVATE)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _require(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
