"""A second writer of docs/model-format.md, from its text alone: what the reader is tested against.

It seals whatever it is told to, so that attacks by someone who has the key can be built too.
"""

import hashlib
import hmac
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY = bytes(range(32))
GOLDEN = {"prompt": "2+2=", "max_tokens": 4, "accept": [{"engine": "builtin", "precision": "float32", "text": "4"}]}
TREE = {"config.json": b'{"a":1}', "empty": b"", "sub/w.safetensors": bytes(range(256)) * 40}  # 3 segments


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 for at most 32 bytes."""
    prk = hmac.digest(salt, key, "sha256")
    return hmac.digest(prk, info + b"\x01", "sha256")[:length]


def model_hash(files: dict[str, bytes]) -> str:
    lines = [hashlib.sha256(data).hexdigest() + "  " + path + "\n" for path, data in files.items()]
    lines.sort(key=lambda line: line[66:].encode("utf-8", "surrogatepass"))
    return "sha256:" + hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass
class Package:
    """One package to write; set or change anything before `write`."""

    files: list[tuple[str, bytes]] = field(default_factory=lambda: list(TREE.items()))
    key: bytes = KEY
    package: bytes = bytes(range(100, 116))
    version: int = 1
    key_id: str = "k1"
    segment_size: int = 4096
    header: dict[str, Any] = field(default_factory=dict)  # overrides
    manifest: dict[str, Any] = field(default_factory=dict)  # overrides; a value of None removes the key

    @property
    def model_hash(self) -> str:
        return model_hash(dict(self.files))

    def seal_file(self, path: str, number: int, data: bytes) -> bytes:
        key = hkdf(
            self.key,
            self.package,
            b"antechamber-sealed/1/file" + struct.pack(">Q", number) + path.encode("utf-8", "surrogatepass"),
            32,
        )
        size, count = self.segment_size, max(1, -(-len(data) // self.segment_size))
        out = b""
        for i in range(count):
            aad = b"antechamber-sealed/1/segment" + self.package
            aad += struct.pack(">QQBQI", number, i, i == count - 1, len(data), size)
            sealed = AESGCM(key).encrypt(i.to_bytes(12, "big"), data[i * size : (i + 1) * size], aad)
            out += sealed if i == count - 1 else sealed.ljust(size + 4096, b"\0")
        return out

    def entries(self) -> list[dict[str, Any]]:
        return [
            {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "data": number}
            for number, (path, data) in enumerate(self.files)
        ]

    def write(self, out: Path) -> Path:
        (out / "data").mkdir(parents=True)
        for number, (path, data) in enumerate(self.files):
            (out / "data" / f"{number:08d}").write_bytes(self.seal_file(path, number, data))
        shared = {"format": "antechamber-sealed/1", "package": self.package.hex(), "key_id": self.key_id}
        shared |= {"version": self.version, "segment_size": self.segment_size}
        manifest = shared | {"model_hash": self.model_hash, "golden": GOLDEN, "files": self.entries()} | self.manifest
        plain = json.dumps({k: v for k, v in manifest.items() if v is not None}).encode()
        check = hkdf(self.key, self.package, b"antechamber-sealed/1/key-check", 16).hex()
        header = json.dumps(shared | {"key_check": check, "manifest_size": len(plain)} | self.header).encode()
        (out / "package.json").write_bytes(header)
        key = hkdf(self.key, self.package, b"antechamber-sealed/1/manifest", 32)
        sealed = AESGCM(key).encrypt(bytes(12), plain, b"antechamber-sealed/1/manifest" + header)
        (out / "manifest.sealed").write_bytes(sealed)
        return out
