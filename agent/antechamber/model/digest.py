"""MODEL_HASH of a directory, as coreutils compute it: one line per file, bytewise sorted, hashed once more.

`find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 -r sha256sum -- | sha256sum`
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from antechamber.errors import HardwareUnavailable, ModelCorrupt, PlatformUnfit

SCHEME = "sha256:"
MAX_PATH = 1024  # bytes of UTF-8, the whole relative path
MAX_COMPONENT = 255  # bytes: NAME_MAX
Progress = Callable[[int, int], None]  # bytes done, bytes in all

_MODEL_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_BLOCK = 1 << 18  # bytes: what stays in the L2 cache between read and hash
_NAME_HINT = "rename the file: MODEL_HASH covers plain UTF-8 paths only"


@dataclass(frozen=True, slots=True)
class FileDigest:
    path: str  # relative, "/" between components
    size: int  # bytes
    sha256: str  # lower-case hex


@dataclass(frozen=True, slots=True)
class TreeDigest:
    """A directory's MODEL_HASH and what it was made of, in its order."""

    model_hash: str
    files: tuple[FileDigest, ...]


def hash_tree(directory: Path, progress: Progress | None = None) -> TreeDigest:
    """MODEL_HASH of the regular files under `directory`, read in blocks.

    Raises ModelCorrupt `model.empty`, `model.name`, `model.special`, `model.missing`; HardwareUnavailable `model.io`.
    """
    with open_directory(directory) as root:
        paths = list_files(root)
        tick = counter(progress, paths, root)
        files = tuple(_hash_file(path, root, tick) for path in paths)
    return TreeDigest(list_hash([(f.path, f.sha256) for f in files]), files)


def list_hash(entries: Collection[tuple[str, str]]) -> str:
    """MODEL_HASH of (path, SHA-256 in hex) pairs, in any order. Raises ModelCorrupt `model.empty`, `model.name`."""
    if not entries:
        raise ModelCorrupt("model.empty", "the tree has no files", hint="name the directory of a model")
    total = hashlib.sha256()
    for path, digest in sorted((path_bytes(path), digest) for path, digest in entries):
        total.update(digest.encode("ascii") + b"  " + path + b"\n")
    return SCHEME + total.hexdigest()


def require_model_hash(text: str) -> str:
    """`text`, if it is a MODEL_HASH of this scheme. Raises ModelCorrupt `model.hash`."""
    if not _MODEL_HASH.fullmatch(text):
        raise ModelCorrupt("model.hash", f"{text!r:.90} is not a MODEL_HASH", hint="sha256:<64 lower-case hex digits>")
    return text


def path_bytes(path: str) -> bytes:
    """A path's UTF-8, if it stays inside the tree and sha256sum prints it as it is.

    Raises ModelCorrupt `model.name`.
    """
    try:
        raw = path.encode()
    except UnicodeEncodeError as e:  # a lone surrogate: from os.fsdecode, or from JSON
        raise ModelCorrupt("model.name", f"{path!r} is not UTF-8", hint=_NAME_HINT) from e
    if path == "-":
        raise ModelCorrupt("model.name", "a file named '-': sha256sum would read its standard input", hint=_NAME_HINT)
    if any(c in path for c in "\n\r\\\0"):  # coreutils escapes these three; none can carry NUL
        raise ModelCorrupt("model.name", f"{path!r} has a newline, return, backslash or NUL", hint=_NAME_HINT)
    parts = raw.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts):
        raise ModelCorrupt("model.name", f"{path!r} is not a plain relative path", hint=_NAME_HINT)
    if len(raw) > MAX_PATH or max(map(len, parts)) > MAX_COMPONENT:
        raise ModelCorrupt("model.name", f"{path!r:.90} is too long", hint=_NAME_HINT)
    return raw


def list_files(root: int) -> tuple[str, ...]:
    """Relative paths of all regular files under the open directory `root`, sorted bytewise.

    Raises ModelCorrupt `model.name`, `model.special`. Directories without files count for nothing, as with find.
    """
    found: list[tuple[bytes, str]] = []
    pending = [""]
    while pending:
        at = pending.pop()
        for name, mode in _entries(at, root):
            path = f"{at}/{name}" if at else name
            if stat.S_ISDIR(mode):
                pending.append(path)
            elif stat.S_ISREG(mode):
                found.append((path_bytes(path), path))
            else:
                raise ModelCorrupt("model.special", f"{path!r} is not a regular file", hint="copy it as a plain file")
    return tuple(path for _, path in sorted(found))


def _entries(path: str, root: int) -> list[tuple[str, int]]:
    with translated_errors(path or "."):
        directory = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
        try:
            with os.scandir(directory) as entries:
                return [(e.name, e.stat(follow_symlinks=False).st_mode) for e in entries]
        finally:
            os.close(directory)


@contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """A descriptor of the directory `path`, for use as `dir_fd`."""
    with translated_errors(str(path)):
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)


@contextmanager
def open_regular(path: str, root: int) -> Iterator[int]:
    """A descriptor of the regular file `path` under `root`; never a link, never blocks on a fifo.

    Raises ModelCorrupt `model.missing`, `model.special`; HardwareUnavailable `model.io`.
    """
    with translated_errors(path):
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ModelCorrupt("model.special", f"{path!r} is not a regular file", hint="copy it as a plain file")
        yield file
    finally:
        os.close(file)


@contextmanager
def translated_errors(path: str) -> Iterator[None]:
    """Kernel errors about `path` as refusals. Raises `model.missing`, `model.special`, `model.space`, `model.io`."""
    try:
        yield
    except FileExistsError:
        raise  # the caller knows what must not be there
    except OSError as e:
        if e.errno == errno.ENOENT:
            raise ModelCorrupt("model.missing", f"{path!r} is not there", hint="name the whole tree") from e
        if e.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):  # a link, something else than a directory, a socket
            raise ModelCorrupt(
                "model.special", f"{path!r}: {e.strerror}", hint="use plain files and directories"
            ) from e
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PlatformUnfit("model.space", f"no space for {path!r}", hint="give the guest more memory") from e
        raise HardwareUnavailable("model.io", f"{path!r}: {e.strerror}", hint="see the kernel's log") from e


def write_all(file: int, data: memoryview) -> None:
    """All of `data`, however the kernel splits it."""
    while data:
        data = data[os.write(file, data) :]


def counter(progress: Progress | None, paths: Collection[str], root: int) -> Callable[[int], None]:
    """Adds up bytes and reports them against the sum of the files' sizes."""
    if progress is None:
        return lambda count: None
    total, done = 0, 0
    for path in paths:
        with translated_errors(path):
            total += os.stat(path, dir_fd=root, follow_symlinks=False).st_size

    def tick(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return tick


def _hash_file(path: str, root: int, tick: Callable[[int], None]) -> FileDigest:
    block = memoryview(bytearray(_BLOCK))
    digest, size = hashlib.sha256(), 0
    with open_regular(path, root) as file, translated_errors(path):
        while count := os.readv(file, [block]):
            digest.update(block[:count])
            size += count
            tick(count)
    return FileDigest(path, size, digest.hexdigest())
