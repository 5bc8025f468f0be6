"""The header and the manifest of a sealed package. Format: docs/model-format.md."""

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from antechamber import strict
from antechamber.errors import ModelCorrupt
from antechamber.model.digest import path_bytes, require_model_hash
from antechamber.model.inert import refuse_code

T = TypeVar("T")

FORMAT = "antechamber-sealed/1"
HEADER_NAME = "package.json"
MANIFEST_NAME = "manifest.sealed"
DATA_NAME = "data"
MAX_HEADER = 4096  # bytes
MAX_MANIFEST = 256 << 20  # bytes of JSON
MAX_FILES = 1_000_000
MAX_NUMBER = 99_999_999  # data files have eight digits
MAX_SIZE = 1 << 50  # bytes of one file
MAX_VERSION = (1 << 63) - 1
MIN_SEGMENT, MAX_SEGMENT = 4096, 16 << 20  # bytes; a multiple of 4096
DEFAULT_SEGMENT = 256 << 10  # bytes: stays in the L2 cache between read, decrypt, hash and write

_HEX32 = re.compile(r"[0-9a-f]{32}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_MANIFEST_HINT = "pack the model again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """`package.json`: what the reader needs before it has the key. Its exact bytes are AAD of the manifest."""

    format: str
    package: str  # 16 random bytes in hex: the salt of every key
    key_id: str
    key_check: str  # 16 bytes in hex, from the key: tells a wrong key from a changed package
    version: int
    segment_size: int  # bytes of plaintext
    manifest_size: int  # bytes of plaintext

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise _header(f"format is {self.format!r:.60}, this agent reads {FORMAT}")
        if not (_HEX32.fullmatch(self.package) and _HEX32.fullmatch(self.key_check)):
            raise _header("package and key_check are 32 lower-case hex digits each")
        if not _KEY_ID.fullmatch(self.key_id):
            raise _header(f"key_id is {self.key_id!r:.60}, not letters, digits and ._:/- (128 at most)")
        if not 1 <= self.version <= MAX_VERSION:
            raise _header(f"version is {self.version}, not 1 to 2^63-1")
        if not MIN_SEGMENT <= self.segment_size <= MAX_SEGMENT or self.segment_size % 4096:
            raise _header(f"segment_size is {self.segment_size}, not a multiple of 4096 up to {MAX_SEGMENT}")
        if not 1 <= self.manifest_size <= MAX_MANIFEST:
            raise _header(f"manifest_size is {self.manifest_size}, not 1 to {MAX_MANIFEST}")

    @classmethod
    def parse(cls, raw: bytes) -> "Header":
        """Raises ModelCorrupt `model.header`."""
        return _load(raw, cls, "model.header", MAX_HEADER)

    def encode(self) -> bytes:
        return _dump(dataclasses.asdict(self))

    @property
    def package_id(self) -> bytes:
        return bytes.fromhex(self.package)


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Accept:
    """One continuation that the golden prompt may have: engines differ in the last bits."""

    engine: str
    precision: str
    text: str


@dataclass(frozen=True, slots=True)
class Golden:
    """What a ready engine answers, deterministically, sealed when the model was packed."""

    prompt: str | tuple[Message, ...]
    max_tokens: int
    accept: tuple[Accept, ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.accept or not 1 <= self.max_tokens <= 4096:
            raise _golden("it needs a prompt, max_tokens from 1 to 4096 and an accepted text")
        if not all(a.engine and a.precision and a.text for a in self.accept):
            raise _golden("an accepted text needs engine, precision and text")

    @classmethod
    def parse(cls, raw: bytes | str) -> "Golden":
        """From JSON text. Raises ModelCorrupt `model.golden`."""
        return _load(raw, cls, "model.golden", strict.MAX_TEXT)

    def accepts(self, engine: str, precision: str, text: str) -> bool:
        """Whether this engine at this precision may answer `text`; False also for one that was never sealed."""
        return Accept(engine, precision, text) in self.accept


@dataclass(frozen=True, slots=True)
class SealedFile:
    path: str
    size: int  # bytes of plaintext
    sha256: str
    data: int  # number of the data file
    midstates: str | None = None  # reserved: SHA-256 states at segment boundaries, base64; untrusted hints

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE or not 0 <= self.data <= MAX_NUMBER:
            raise _manifest(f"size {self.size} or data {self.data} of {self.path!r:.90} is out of range")
        if not _HEX64.fullmatch(self.sha256):
            raise _manifest(f"sha256 of {self.path!r:.90} is not 64 lower-case hex digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`manifest.sealed`, decrypted: the files, their digests, and what the engine must answer."""

    format: str
    package: str
    key_id: str
    version: int
    segment_size: int
    model_hash: str
    golden: Golden
    files: tuple[SealedFile, ...]

    def __post_init__(self) -> None:
        require_model_hash(self.model_hash)
        if not 1 <= len(self.files) <= MAX_FILES:
            raise _manifest(f"{len(self.files)} files, not 1 to {MAX_FILES}")
        if len({f.data for f in self.files}) != len(self.files):
            raise _manifest("two files share one data file")
        refuse_names(f.path for f in self.files)

    @classmethod
    def parse(cls, raw: bytes) -> "Manifest":
        """Raises ModelCorrupt `model.manifest`, `model.golden`, `model.name`, `model.code`, `model.hash`."""
        value = _json(raw, "model.manifest", MAX_MANIFEST)
        if isinstance(value, dict):
            _build(value.get("golden"), Golden, "model.golden")  # absent or wrong: its own code
        return _build(value, cls, "model.manifest")

    def encode(self) -> bytes:
        value = dataclasses.asdict(self)
        value["files"] = [{k: v for k, v in f.items() if v is not None} for f in value["files"]]
        return _dump(value)

    def require_header(self, header: Header) -> None:
        """Raises ModelCorrupt `model.manifest` unless both say the same."""
        ours = (self.format, self.package, self.key_id, self.version, self.segment_size)
        if ours != (header.format, header.package, header.key_id, header.version, header.segment_size):
            raise _manifest("it is not the manifest of this header")

    @property
    def total_size(self) -> int:
        return sum(f.size for f in self.files)


def refuse_names(paths: Iterable[str]) -> None:
    """Refuse paths that leave the tree, collide, also by case, or name code. Raises `model.name`, `model.code`."""
    files: set[str] = set()
    directories: dict[str, str] = {}  # case-folded to as spelled
    for path in paths:
        path_bytes(path)
        refuse_code(path)
        folded = path.casefold()
        if folded in files:
            raise ModelCorrupt("model.name", f"{path!r} stands twice", hint="names must differ by more than case")
        files.add(folded)
        parts = path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if directories.setdefault(parent.casefold(), parent) != parent:
                raise ModelCorrupt("model.name", f"{parent!r} stands twice", hint="names must differ by more than case")
    if both := files.intersection(directories):
        raise ModelCorrupt("model.name", f"{min(both)!r} is a file and a directory", hint=_MANIFEST_HINT)


def _load(raw: bytes | str, kind: type[T], code: str, limit: int) -> T:
    return _build(_json(raw, code, limit), kind, code)


def _json(raw: bytes | str, code: str, limit: int) -> Any:
    try:
        text = raw if isinstance(raw, str) else raw.decode()  # json.loads would also take UTF-16
    except UnicodeDecodeError as e:
        raise ModelCorrupt(code, "it is not UTF-8", hint=_MANIFEST_HINT) from e
    try:
        return strict.load_json(text, error=_Loose, family="model", limit=limit)
    except _Loose as e:
        raise ModelCorrupt(code, e.detail, hint=_MANIFEST_HINT) from e


def _build(value: Any, kind: type[T], code: str) -> T:
    try:
        return strict.build(value, kind, error=_Loose, family="model")
    except _Loose as e:
        raise ModelCorrupt(code, e.detail, hint=_MANIFEST_HINT) from e


class _Loose(ModelCorrupt):
    """What the strict loader raises here, before it gets the code of its document."""


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _header(detail: str) -> ModelCorrupt:
    return ModelCorrupt("model.header", detail, hint="fetch the package again, or update the agent")


def _manifest(detail: str) -> ModelCorrupt:
    return ModelCorrupt("model.manifest", detail, hint=_MANIFEST_HINT)


def _golden(detail: str) -> ModelCorrupt:
    return ModelCorrupt("model.golden", detail, hint="seal a golden prompt when packing")
