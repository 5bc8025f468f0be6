"""The engine's network: a namespace of its own, with nothing in it but loopback. This file also is what enters it.

`python -I -S confined.py FD UID GID PROGRAM ARG...` becomes PROGRAM in there, as that user (-1: as it is). What goes
wrong is written to FD, which nobody has open any more once PROGRAM runs. A process of its own, because a user namespace
takes one without threads; and by path and on the standard library alone, because it starts with every engine.
Source: network_namespaces(7), user_namespaces(7), netdevice(7), prctl(2).
"""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import NoReturn

_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_SET_DUMPABLE, _SET_NO_NEW_PRIVS = 4, 38
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
_REQUEST = struct.Struct("16sh22x")  # struct ifreq: name, flags
_LOOPBACK = "lo"

Identity = tuple[int, int]  # uid, gid


def network() -> int:
    """Which network namespace this is: its inode."""
    return os.stat("/proc/self/ns/net").st_ino


def enter(identity: Identity | None, apart_from: int) -> None:
    """Leave the network `apart_from` behind, if we are still in it, and then be `identity`. No way back.

    A user namespace gives what making a network takes where we lack it; there we must be alone in our process.
    Raises OSError.
    """
    if network() == apart_from or _reach_out():  # unless a unit's PrivateNetwork= was first
        if _unshare(_NEWNET) is not None:
            become(identity)
            identity = None  # it is done
            _enter_user_namespace()
        _bring_loopback_up()
    if network() == apart_from or (others := _reach_out()):
        raise OSError(f"still in a network with {', '.join(others) or 'the agent'}")
    become(identity)
    _prctl(_SET_NO_NEW_PRIVS, 1)  # no set-user-ID program leads out again


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    _prctl(_SET_DUMPABLE, 1)  # or /proc/self is root's, after a change of user; exec decides anew
    if (refused := _unshare(_NEWUSER | _NEWNET)) is not None:
        raise refused
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path("/proc/self", name).write_text(text)


def become(identity: Identity | None) -> None:
    """That user and group, and no other group; None: as we are. Raises OSError."""
    if identity is not None:
        os.setgroups([])
        os.setgid(identity[1])
        os.setuid(identity[0])


def _reach_out() -> list[str]:
    """Interfaces that are up, but for loopback: a kernel may add some of its own, which are down."""
    return [name for _, name in socket.if_nameindex() if name != _LOOPBACK and _flags(name) & _UP]


def _bring_loopback_up() -> None:
    _flags(_LOOPBACK, _UP)


def _flags(interface: str, more: int = 0) -> int:
    """Flags of an interface, with `more` added to them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        name = interface.encode()
        flags = int(_REQUEST.unpack(fcntl.ioctl(asked, _GET_FLAGS, _REQUEST.pack(name, 0)))[1])
        if more:
            fcntl.ioctl(asked, _SET_FLAGS, _REQUEST.pack(name, flags | more))
        return flags | more


def _unshare(flags: int) -> OSError | None:
    """unshare(2); os.unshare is of Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    return None if libc.unshare(flags) == 0 else _error("unshare")


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise _error("prctl")


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), call)


def told(error: OSError) -> str:
    """Which call or file, and why."""
    return f"{error.filename or 'network'}: {error.strerror or error}"


def command(report: int, identity: Identity | None) -> tuple[str, ...]:
    """argv that becomes whatever follows it."""
    uid, gid = identity or (-1, -1)
    return (sys.executable, "-I", "-S", __file__, str(report), str(uid), str(gid))


def main(argv: list[str]) -> NoReturn:
    report, uid, gid = (int(word) for word in argv[1:4])
    os.set_inheritable(report, False)
    environment, step = _given_environment(), "network"
    try:
        enter(None if uid < 0 else (uid, gid), network())
        step = "start"
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would pass that on
            signal.signal(number, signal.SIG_DFL)
        os.execve(argv[4], argv[4:], environment)  # noqa: S606  # the catalogue's argv
    except OSError as e:
        os.write(report, f"{step}:{told(e)}".encode())
    os._exit(1)


def _given_environment() -> dict[bytes, bytes]:
    """What execve gave us, not what Python made of it."""
    lines = Path("/proc/self/environ").read_bytes().split(b"\0")
    return {name: value for name, _, value in (line.partition(b"=") for line in lines) if name}


if __name__ == "__main__":
    main(sys.argv)
