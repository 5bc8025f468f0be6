"""A sealed package to a verified directory in guest memory: ciphertext in, plaintext out, or nothing.

The host owns the package and may change it at any moment, so every byte is read once, into private memory, and
authenticated there before anything else sees it.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from antechamber.errors import ConfigError, ModelCorrupt, PlatformUnfit
from antechamber.model.cipher import TAG_SIZE, FileCipher, Layout, PackageKeys
from antechamber.model.digest import (
    FileDigest,
    Progress,
    list_hash,
    open_directory,
    open_regular,
    require_model_hash,
    translated_errors,
    write_all,
)
from antechamber.model.inert import ConfigGuard
from antechamber.model.manifest import (
    DATA_NAME,
    HEADER_NAME,
    MANIFEST_NAME,
    MAX_HEADER,
    Golden,
    Header,
    Manifest,
    SealedFile,
)
from antechamber.secret import Secret

_PAGE = 4096  # bytes: what tmpfs counts in
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FETCH = "fetch the package again"


@dataclass(frozen=True, slots=True)
class Model:
    """A model in guest memory whose every byte is in MODEL_HASH. Only `unlock` makes one."""

    path: Path
    model_hash: str
    golden: Golden
    files: tuple[FileDigest, ...]
    version: int
    key_id: str


def unlock(
    package: Path,
    key: Secret,
    *,
    model_hash: str,
    destination: Path,
    in_memory: Callable[[str], bool],
    progress: Progress,
    floor: int = 1,
) -> Model:
    """Decrypt and verify `package` into the new directory `destination`; spends `key` in any case.

    On failure, also by a signal's exception, no plaintext stays. `floor` is the oldest version to accept.
    Raises ModelCorrupt `model.*`, PlatformUnfit `model.not-memory`, `model.space`, ConfigError `model.destination`,
    HardwareUnavailable `model.io`.
    """
    try:
        require_model_hash(model_hash)
        with open_directory(package) as source:
            keys, manifest = _open_manifest(source, key)
            _require_wanted(manifest, model_hash, floor)
            with _claimed(destination, in_memory) as parent, _data_directory(source) as data:
                _require_space(parent, manifest)
                return _Unlocking(keys, manifest, data, progress).emerge(destination, parent)
    finally:
        key.destroy()


def destroy(model: Model) -> None:
    """Remove the plaintext. Pages that an engine still maps are freed when it ends."""
    erase(model.path)


def erase(destination: Path) -> None:
    """Remove whatever `unlock` may have put at `destination`, also before it was whole."""
    for path in (destination, destination.with_name(_partial(destination))):
        with translated_errors(str(path)), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


def _open_manifest(source: int, key: Secret) -> tuple[PackageKeys, Manifest]:
    with open_regular(HEADER_NAME, source) as file:
        if (size := os.fstat(file).st_size) > MAX_HEADER:
            raise ModelCorrupt("model.header", f"{size} bytes, at most {MAX_HEADER}", hint=_FETCH)
        raw = _read(file, size, HEADER_NAME)
    header = Header.parse(raw)
    keys = PackageKeys.derive(key, header.package_id)
    keys.require_check(header.key_check)
    with open_regular(MANIFEST_NAME, source) as file:
        size = header.manifest_size + TAG_SIZE
        _require_size(file, size, MANIFEST_NAME)
        sealed = _read(file, size, MANIFEST_NAME)
    manifest = Manifest.parse(keys.open_manifest(sealed, raw))
    manifest.require_header(header)
    return keys, manifest


def _require_wanted(manifest: Manifest, model_hash: str, floor: int) -> None:
    if manifest.version < floor:
        raise ModelCorrupt(
            "model.version", f"version {manifest.version}, at least {floor}", hint="pack the newer model"
        )
    listed = list_hash([(f.path, f.sha256) for f in manifest.files])
    if not listed == manifest.model_hash == model_hash:
        raise ModelCorrupt("model.hash", f"the package holds {listed}, not {model_hash}", hint="correct MODEL_HASH")


@contextmanager
def _claimed(destination: Path, in_memory: Callable[[str], bool]) -> Iterator[int]:
    """The directory that will hold `destination`: in memory, ours alone, and nothing of that name in it yet."""
    where = destination.parent.resolve()
    with open_directory(where) as parent:
        if not in_memory(str(where)):
            raise PlatformUnfit("model.not-memory", f"{where} is not on tmpfs or ramfs", hint="mount a tmpfs there")
        try:
            fcntl.flock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ConfigError("model.destination", f"{where} is in use", hint="wait for the other agent") from e
        if os.path.lexists(where / destination.name):
            raise ConfigError("model.destination", f"{destination} exists", hint="remove it, or name a new directory")
        _remove(_partial(destination), parent)  # what a killed run left
        yield parent


@contextmanager
def _data_directory(source: int) -> Iterator[int]:
    with translated_errors(DATA_NAME):
        data = os.open(DATA_NAME, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    try:
        yield data
    finally:
        os.close(data)


def _require_space(parent: int, manifest: Manifest) -> None:
    facts = os.fstatvfs(parent)
    if not facts.f_blocks:  # ramfs, or a tmpfs without a limit: writing will tell
        return
    free = facts.f_bavail * facts.f_frsize
    need = sum(-(-f.size // _PAGE) * _PAGE for f in manifest.files)
    if need > free:
        raise PlatformUnfit("model.space", f"needs {need} bytes, {free} are free", hint="give the guest more memory")


@dataclass(frozen=True, slots=True)
class _Unlocking:
    keys: PackageKeys
    manifest: Manifest
    data: int  # directory descriptor
    progress: Progress

    def emerge(self, destination: Path, parent: int) -> Model:
        """The whole model under its name, or nothing: it grows under another name that only we can enter."""
        partial = _partial(destination)
        try:
            with translated_errors(partial):
                os.mkdir(partial, 0o700, dir_fd=parent)
                root = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                files = self._fill(root)
                with translated_errors(partial):
                    _open_to_group(root)
                    os.rename(partial, destination.name, src_dir_fd=parent, dst_dir_fd=parent)
            finally:
                os.close(root)
            found = self.manifest
            return Model(destination, found.model_hash, found.golden, files, found.version, found.key_id)
        except BaseException:
            _remove(partial, parent)
            _remove(destination.name, parent)  # ours: it was not there when we took the lock
            raise

    def _fill(self, root: int) -> tuple[FileDigest, ...]:
        _make_directories(self.manifest, root)
        done, files = 0, []
        buffer = memoryview(bytearray(Layout(0, self.manifest.segment_size).stride))
        try:
            for file in self.manifest.files:
                files.append(self._unlock_file(file, root, buffer, done))
                done += file.size
        finally:
            buffer[:] = bytes(len(buffer))  # may hold plaintext that did not authenticate
        # The manifest's list was verified before; this one is of the bytes that are in memory now.
        if list_hash([(f.path, f.sha256) for f in files]) != self.manifest.model_hash:
            raise ModelCorrupt("model.hash", "the files are not MODEL_HASH", hint=_FETCH)
        return tuple(files)

    def _unlock_file(self, file: SealedFile, root: int, buffer: memoryview, done: int) -> FileDigest:
        name = f"{file.data:08d}"
        cipher = self.keys.file(Layout(file.size, self.manifest.segment_size), file.data, file.path)
        with open_regular(name, self.data) as sealed, _created(file.path, root) as out:
            _require_size(sealed, cipher.layout.stored_size, name)
            digest, guard = hashlib.sha256(), ConfigGuard(file.path)
            for index in range(cipher.layout.segments):
                plaintext = _open_segment(sealed, cipher, index, buffer)
                digest.update(plaintext)
                guard.update(plaintext)
                with translated_errors(file.path):
                    write_all(out, plaintext)
                done += len(plaintext)
                self.progress(done, self.manifest.total_size)
            guard.finish()
        if digest.hexdigest() != file.sha256:
            raise ModelCorrupt("model.hash", f"{file.path!r} is not what the manifest lists", hint=_FETCH)
        return FileDigest(file.path, file.size, digest.hexdigest())


def _open_segment(sealed: int, cipher: FileCipher, index: int, buffer: memoryview) -> memoryview:
    stored = buffer[: cipher.layout.stored_length(index)]
    _read_into(sealed, stored, index * cipher.layout.stride, f"{cipher.number:08d}")
    return cipher.open(index, buffer)


@contextmanager
def _created(path: str, root: int) -> Iterator[int]:
    with translated_errors(path):
        file = os.open(path, _CREATE, 0o600, dir_fd=root)
    try:
        yield file
        with translated_errors(path):
            os.fchmod(file, 0o640)
    finally:
        os.close(file)


def _make_directories(manifest: Manifest, root: int) -> None:
    wanted = {p for f in manifest.files for p in list(Path(f.path).parents)[:-1]}
    for directory in sorted(wanted):  # parents first
        with translated_errors(str(directory)):
            os.mkdir(directory, 0o700, dir_fd=root)
            made = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            try:
                _open_to_group(made)
            finally:
                os.close(made)


def _open_to_group(directory: int) -> None:
    """Mode 0750, but keep the set-group-ID bit, by which the engine's group is inherited."""
    os.fchmod(directory, 0o750 | (os.fstat(directory).st_mode & stat.S_ISGID))


def _partial(destination: Path) -> str:
    return f".{destination.name}.partial"


def _remove(name: str, parent: int) -> None:
    with translated_errors(name), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(name, dir_fd=parent)


def _require_size(file: int, expected: int, name: str) -> None:
    size = os.fstat(file).st_size
    if size < expected:
        raise ModelCorrupt("model.truncated", f"{name} has {size} bytes, not {expected}", hint=_FETCH)
    if size > expected:
        raise ModelCorrupt("model.trailing", f"{name} has {size} bytes, not {expected}", hint=_FETCH)


def _read(file: int, size: int, name: str) -> bytes:
    buffer = bytearray(size)
    _read_into(file, memoryview(buffer), 0, name)
    return bytes(buffer)


def _read_into(file: int, buffer: memoryview, offset: int, name: str) -> None:
    """Fill `buffer`; a file that shrinks as we read is refused, one that grows is not read on."""
    while buffer:
        with translated_errors(name):
            count = os.preadv(file, [buffer], offset)
        if not count:
            raise ModelCorrupt("model.truncated", f"{name} ends at byte {offset}", hint=_FETCH)
        buffer, offset = buffer[count:], offset + count
