"""Keys and segments of the sealed format. Source: docs/model-format.md; RFC 5869; NIST SP 800-38D."""

import hmac
import struct
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from antechamber.errors import ModelCorrupt
from antechamber.secret import Secret

KEY_SIZE = 32  # bytes
TAG_SIZE = 16  # bytes, after each ciphertext
STRIDE = 4096  # bytes: segments start on these, so that O_DIRECT can read them

_LABEL = b"antechamber-sealed/1/"
_MANIFEST_NONCE = bytes(12)  # its key seals one message
# package id, data file number, segment index, last, bytes of plaintext in the file, segment size; big-endian
_SEGMENT_AAD = struct.Struct(">16sQQBQI")
_TAMPERED = "the package was changed after packing: fetch it again"


@dataclass(frozen=True, slots=True)
class PackageKeys:
    """Everything derived from one model key for one package id. Holds HKDF's PRK, not the key."""

    package_id: bytes
    _prk: bytes = field(repr=False)

    @classmethod
    def derive(cls, key: Secret, package_id: bytes) -> "PackageKeys":
        """Spends `key`. Raises ModelCorrupt `model.key` unless it is 32 bytes."""
        with key as lent:
            if len(lent) != KEY_SIZE:
                raise ModelCorrupt("model.key", f"{len(lent)} bytes, not {KEY_SIZE}", hint="release a raw 32-byte key")
            return cls(package_id, HKDF.extract(SHA256(), package_id, lent))

    def require_check(self, key_check: str) -> None:
        """Raises ModelCorrupt `model.key` if this is not the key that packed."""
        if not hmac.compare_digest(self.check, key_check):
            raise ModelCorrupt("model.key", "the key is not the one that packed", hint="compare the key id")

    @property
    def check(self) -> str:
        """16 bytes in hex, safe to publish: says nothing of the other keys."""
        return self._expand(b"key-check", 16).hex()

    def seal_manifest(self, plaintext: bytes, header: bytes) -> bytes:
        return self._manifest().encrypt(_MANIFEST_NONCE, plaintext, _LABEL + b"manifest" + header)

    def open_manifest(self, sealed: bytes, header: bytes) -> bytes:
        """`header` is package.json's exact bytes. Raises ModelCorrupt `model.manifest`."""
        try:
            return self._manifest().decrypt(_MANIFEST_NONCE, sealed, _LABEL + b"manifest" + header)
        except InvalidTag as e:
            raise ModelCorrupt("model.manifest", "manifest or header do not authenticate", hint=_TAMPERED) from e

    def file(self, layout: "Layout", number: int, path: str) -> "FileCipher":
        """Cipher for one data file: its key is bound to number and path."""
        info = b"file" + struct.pack(">Q", number) + path.encode()
        return FileCipher(layout, self.package_id, number, AESGCM(self._expand(info, KEY_SIZE)))

    def _manifest(self) -> AESGCM:
        return AESGCM(self._expand(b"manifest", KEY_SIZE))

    def _expand(self, info: bytes, length: int) -> bytes:
        return HKDFExpand(SHA256(), length, _LABEL + info).derive(self._prk)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the segments of one file lie. All in bytes."""

    size: int  # plaintext of the whole file
    segment_size: int

    @property
    def stride(self) -> int:
        """From one segment to the next: ciphertext, tag, zeros up to a multiple of 4096."""
        return (self.segment_size + TAG_SIZE + STRIDE - 1) // STRIDE * STRIDE

    @property
    def segments(self) -> int:
        """At least one: an empty file has one empty segment."""
        return max(1, (self.size + self.segment_size - 1) // self.segment_size)

    @property
    def stored_size(self) -> int:
        """The last segment has no padding."""
        return (self.segments - 1) * self.stride + self.length(self.segments - 1) + TAG_SIZE

    def length(self, index: int) -> int:
        """Plaintext of segment `index`."""
        return min(self.segment_size, self.size - index * self.segment_size)

    def stored_length(self, index: int) -> int:
        return self.stride if index < self.segments - 1 else self.length(index) + TAG_SIZE


@dataclass(frozen=True, slots=True)
class FileCipher:
    """Seals and opens the segments of one data file in place, in a buffer of `layout.stride` bytes."""

    layout: Layout
    package_id: bytes
    number: int
    _gcm: AESGCM = field(repr=False)

    def seal(self, index: int, buffer: memoryview) -> memoryview:
        """The buffer starts with the segment's plaintext; returns the stored bytes, padding included."""
        length, stored = self.layout.length(index), self.layout.stored_length(index)
        self._gcm.encrypt_into(_nonce(index), buffer[:length], self._aad(index), buffer[: length + TAG_SIZE])
        buffer[length + TAG_SIZE : stored] = bytes(stored - length - TAG_SIZE)
        return buffer[:stored]

    def open(self, index: int, buffer: memoryview) -> memoryview:
        """The buffer starts with the stored bytes; returns the plaintext. Raises ModelCorrupt `model.segment`.

        On refusal the buffer holds plaintext that did not authenticate: it must be private memory.
        """
        length, stored = self.layout.length(index), self.layout.stored_length(index)
        padding = buffer[length + TAG_SIZE : stored]
        if padding != bytes(len(padding)):
            raise ModelCorrupt("model.segment", f"padding of segment {index} is not zero", hint=_TAMPERED)
        try:
            self._gcm.decrypt_into(_nonce(index), buffer[: length + TAG_SIZE], self._aad(index), buffer[:length])
        except InvalidTag as e:
            detail = f"segment {index} of data file {self.number:08d} does not authenticate"
            raise ModelCorrupt("model.segment", detail, hint=_TAMPERED) from e
        return buffer[:length]

    def _aad(self, index: int) -> bytes:
        last, layout = index == self.layout.segments - 1, self.layout
        return (
            _LABEL
            + b"segment"
            + _SEGMENT_AAD.pack(self.package_id, self.number, index, last, layout.size, layout.segment_size)
        )


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")
