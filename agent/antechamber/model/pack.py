"""A directory to a sealed package. Never in a production image. Format: docs/model-format.md."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from antechamber.errors import ConfigError, ModelCorrupt
from antechamber.model.cipher import KEY_SIZE, FileCipher, Layout, PackageKeys
from antechamber.model.digest import (
    Progress,
    counter,
    list_files,
    list_hash,
    open_directory,
    open_regular,
    translated_errors,
    write_all,
)
from antechamber.model.inert import ConfigGuard
from antechamber.model.manifest import (
    DATA_NAME,
    DEFAULT_SEGMENT,
    FORMAT,
    HEADER_NAME,
    MANIFEST_NAME,
    Golden,
    Header,
    Manifest,
    SealedFile,
    refuse_names,
)
from antechamber.secret import Secret

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def pack(
    source: Path,
    out: Path,
    key: Secret,
    *,
    golden: Golden,
    key_id: str,
    version: int = 1,
    segment_size: int = DEFAULT_SEGMENT,
    progress: Progress | None = None,
) -> str:
    """Seal `source` into the new directory `out`, whole or not at all; spends `key`. Returns MODEL_HASH.

    Each file is read once. Raises ConfigError `model.parameter`, `model.destination`; ModelCorrupt `model.empty`,
    `model.name`, `model.special`, `model.code`, `model.changed`, `model.missing`; `model.space`, `model.io`.
    """
    try:
        header = _new_header(key_id, version, segment_size)
        _refuse_destination(source, out)
        keys = PackageKeys.derive(key, header.package_id)
    finally:
        key.destroy()
    partial = out.with_name(f".{out.name}.{header.package}.partial")
    try:
        with translated_errors(str(partial)):
            (partial / DATA_NAME).mkdir(parents=True)
        model_hash = _Packer(source, partial, keys, replace(header, key_check=keys.check), progress).run(golden)
        with translated_errors(str(out)):
            partial.rename(out)
            _sync(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return model_hash


def new_key_file(path: Path) -> Secret:
    """A fresh model key of 32 bytes, also written raw to the new file `path`, mode 0600. Raises ConfigError."""
    key = bytearray(os.urandom(KEY_SIZE))
    try:
        _write(path, key, mode=0o600)
    except FileExistsError as e:
        raise ConfigError("model.destination", f"{path} exists", hint="name a new key file") from e
    return Secret(key)


def read_key_file(path: Path) -> Secret:
    """The 32 raw bytes of a key file. Raises ModelCorrupt `model.key`, `model.missing`, `model.special`."""
    key = bytearray(KEY_SIZE + 1)
    with open_directory(path.parent) as parent, open_regular(path.name, parent) as file:
        count = os.readv(file, [key])
    del key[count:]
    if count != KEY_SIZE:
        Secret(key).destroy()
        raise ModelCorrupt("model.key", f"{path} is not {KEY_SIZE} raw bytes", hint="name a key file that pack wrote")
    return Secret(key)


@dataclass(frozen=True, slots=True)
class _Packer:
    source: Path
    out: Path
    keys: PackageKeys
    header: Header
    progress: Progress | None

    def run(self, golden: Golden) -> str:
        with open_directory(self.source) as root:
            paths = list_files(root)
            refuse_names(paths)
            tick = counter(self.progress, paths, root)
            buffer = memoryview(bytearray(Layout(0, self.header.segment_size).stride))
            files = tuple(self._seal(path, number, root, buffer, tick) for number, path in enumerate(paths))
        header, manifest = self._finish(files, golden)
        _write(self.out / HEADER_NAME, header.encode())
        _write(self.out / MANIFEST_NAME, self.keys.seal_manifest(manifest.encode(), header.encode()))
        for directory in (self.out / DATA_NAME, self.out):
            _sync(directory)
        return manifest.model_hash

    def _finish(self, files: tuple[SealedFile, ...], golden: Golden) -> tuple[Header, Manifest]:
        manifest = Manifest(
            format=self.header.format,
            package=self.header.package,
            key_id=self.header.key_id,
            version=self.header.version,
            segment_size=self.header.segment_size,
            model_hash=list_hash([(f.path, f.sha256) for f in files]),
            golden=golden,
            files=files,
        )
        return replace(self.header, manifest_size=len(manifest.encode())), manifest

    def _seal(self, path: str, number: int, root: int, buffer: memoryview, tick: Callable[[int], None]) -> SealedFile:
        with open_regular(path, root) as file:
            before = os.fstat(file)
            layout = Layout(before.st_size, self.header.segment_size)
            cipher = self.keys.file(layout, number, path)
            with _created(self.out / DATA_NAME / f"{number:08d}") as out:
                digest = _stream(cipher, file, out, buffer, ConfigGuard(path), tick)
            after = os.fstat(file)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise _changed(path)
        return SealedFile(path, layout.size, digest, number)


def _stream(
    cipher: FileCipher, file: int, out: int, buffer: memoryview, guard: ConfigGuard, tick: Callable[[int], None]
) -> str:
    """One pass over a file: read, hash, encrypt, write. Returns its SHA-256."""
    digest = hashlib.sha256()
    for index in range(cipher.layout.segments):
        plaintext = buffer[: cipher.layout.length(index)]
        _fill(file, plaintext, guard.path)
        digest.update(plaintext)
        guard.update(plaintext)
        with translated_errors(guard.path):
            write_all(out, cipher.seal(index, buffer))
        tick(cipher.layout.length(index))
    guard.finish()
    return digest.hexdigest()


def _fill(file: int, into: memoryview, path: str) -> None:
    while into:
        with translated_errors(path):
            count = os.readv(file, [into])
        if not count:
            raise _changed(path)
        into = into[count:]


def _changed(path: str) -> ModelCorrupt:
    return ModelCorrupt("model.changed", f"{path!r} changed while it was read", hint="stop the writer, pack again")


def _new_header(key_id: str, version: int, segment_size: int) -> Header:
    try:
        return Header(
            format=FORMAT,
            package=os.urandom(16).hex(),
            key_id=key_id,
            key_check="0" * 32,
            version=version,
            segment_size=segment_size,
            manifest_size=1,
        )
    except ModelCorrupt as e:
        raise ConfigError("model.parameter", e.detail, hint="see antechamber pack --help") from e


def _refuse_destination(source: Path, out: Path) -> None:
    if os.path.lexists(out):
        raise ConfigError("model.destination", f"{out} exists", hint="name a new directory")
    if out.resolve().is_relative_to(source.resolve()):
        raise ConfigError("model.destination", f"{out} lies in the model itself", hint="name one outside of it")


@contextmanager
def _created(path: Path, mode: int = 0o644) -> Iterator[int]:
    """A new file, on the disk when the block ends."""
    with translated_errors(str(path)):
        file = os.open(path, _CREATE, mode)
    try:
        yield file
        with translated_errors(str(path)):
            os.fsync(file)
    finally:
        os.close(file)


def _write(path: Path, data: bytes | bytearray, mode: int = 0o644) -> None:
    with _created(path, mode) as file, translated_errors(str(path)):
        write_all(file, memoryview(data))


def _sync(directory: Path) -> None:
    with open_directory(directory) as opened, translated_errors(str(directory)):
        os.fsync(opened)
