"""Secrets, in every form in which one could leave a process, searched for where none may be."""

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

_TOKEN = re.compile(rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}")  # a JWT, whosever
_WRAPPED = re.compile(rb"\\[nr]|\s")  # how PEM and JSON break a line

Places = Mapping[str, bytes]  # what was seen there; the first word of a name says what kind of place it is


def forms(secret: bytes) -> Iterator[bytes]:
    """Raw, hex, decimal, as Python and JSON show bytes, and base64 at each of the three offsets in a longer text."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield str(int.from_bytes(secret, "big")).encode()
    for shown in (repr(secret)[2:-1], secret.decode("latin-1"), secret.decode(errors="replace")):
        yield shown.encode()
        yield json.dumps(shown)[1:-1].encode()
    for offset in range(3):
        begin, end = -(-offset * 8 // 6), (offset + len(secret)) * 8 // 6
        text = base64.b64encode(bytes(offset) + secret)[begin:end]
        yield text
        yield text.translate(bytes.maketrans(b"+/", b"-_"))


def search(places: Places, secrets: Mapping[str, bytes]) -> set[tuple[str, str]]:
    """(place, name of the secret) for each that is found; `token` for anything like a JWT in a text."""
    wanted = [(name, form) for name, secret in secrets.items() for form in forms(secret)]
    found = set()
    for place, seen in places.items():
        plain = _WRAPPED.sub(b"", seen)
        found |= {(place, name) for name, form in wanted if form in seen or form in plain}
        if not place.startswith("disk") and _TOKEN.search(seen):
            found.add((place, "token"))
    return found


def of_processes(pids: list[int]) -> Iterator[tuple[str, bytes]]:
    """Command line, environment and names of open descriptors of each."""
    for pid in pids:
        for name in ("cmdline", "environ"):
            yield f"{name} {pid}", _read(Path("/proc", str(pid), name))
        links = [_link(fd) for fd in Path("/proc", str(pid), "fd").glob("*")]
        yield f"descriptors {pid}", "\n".join(links).encode()


def of_files(root: Path, kept: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Every file below `root` but those that are there to keep a secret."""
    for path in root.rglob("*"):
        if path.is_file() and not any(path.match(pattern) for pattern in kept):
            yield f"disk {path.relative_to(root)}", _read(path)


def descendants() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # ended meanwhile, or closed to us, which is as good
        return b""


def _link(fd: Path) -> str:
    try:
        return os.readlink(fd)
    except OSError:
        return ""
