"""Structure-aware mutations: one field of a valid document changes, its lengths and signatures are made right again.

Bytes alone never get past a checksum. Each target parses its input as far as it can, lets a `Mutator` change one leaf,
and builds the whole again, so that the layers below are reached too.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from antechamber.simulator.asn1 import sequence, tlv

NUMBERS = (0, 1, -1, 2, 7, 127, 255, 256, 4096, 65535, 1 << 31, (1 << 32) - 1, 1 << 53, 1 << 63, 1 << 64, 10**40)
SCALARS = (None, True, False, "", " ", "\0", "\ud800", "\u00e9", "\U0001f512", "A" * 300, 0.5, -0.0, 1e308, [], {})
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){4,}")
_B64 = re.compile(r"[A-Za-z0-9+/]{8,}={0,2}")
_B64URL = re.compile(r"[A-Za-z0-9_-]{8,}")


def simple_havoc(random: Random) -> Callable[[bytes, int], bytes]:
    """libFuzzer's kinds of change, where there is no libFuzzer."""

    def change(data: bytes, limit: int) -> bytes:
        raw, at = bytearray(data), random.randrange(len(data) + 1)
        match random.randrange(6):
            case 0:
                raw[at:at] = random.randbytes(random.choice((1, 2, 4, 16)))
            case 1:
                del raw[at : at + random.choice((1, 2, 4, 64))]
            case 2 if at < len(raw):
                raw[at] ^= 1 << random.randrange(8)
            case 3 if at < len(raw):
                raw[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 4:
                raw[at : at + 4] = random.choice(NUMBERS[:10]).to_bytes(5, "little", signed=True)[:4]
            case _:
                end = at + random.randrange(1, 64)
                raw[at:at] = raw[at:end]
        return bytes(raw[:limit])

    return change


@dataclass(slots=True)
class Mutator:
    """One random change after another. `havoc` changes bytes: libFuzzer's, or `simple_havoc`."""

    random: Random
    havoc: Callable[[bytes, int], bytes]
    words: Sequence[str] = ()
    limit: int = field(default=1 << 16)

    def often(self, chance: float = 0.5) -> bool:
        return self.random.random() < chance

    def bytes(self, raw: bytes) -> bytes:
        """May be empty, shorter or longer."""
        return self.havoc(raw, min(self.limit, len(raw) + 64)) if raw or self.often() else b"\0"

    def same_size(self, raw: bytes) -> bytes:
        return self.bytes(raw)[: len(raw)].ljust(len(raw), b"\0")

    def text(self, text: str) -> str:
        """Hex, base64 and JSON inside a text are changed inside."""
        if self.often(0.15) and self.words:
            return self.random.choice(self.words)
        if self.often(0.8):
            if text[:1] in ("{", "["):
                try:
                    return json.dumps(self.json(json.loads(text)), separators=(",", ":"))
                except (ValueError, RecursionError):
                    return text[: self.random.randrange(len(text))]
            if _HEX.fullmatch(text):
                return self.bytes(bytes.fromhex(text)).hex()
            if _B64.fullmatch(text) and len(text) % 4 == 0:
                return base64.b64encode(self.bytes(unbase64(text))).decode()
            if _B64URL.fullmatch(text):
                padded = text + "=" * (-len(text) % 4)
                return base64.urlsafe_b64encode(self.bytes(unbase64(padded))).decode().rstrip("=")
        return self.bytes(text.encode("utf-8", "replace")).decode("utf-8", "replace")

    def json(self, value: Any) -> Any:
        """A copy in which one node, at any depth, is changed, removed, doubled or moved."""
        nodes = list(_nodes(value, ()))
        path = self.random.choice(nodes)
        return _rebuilt(value, path, lambda node: self._node(node, [_at(value, p) for p in nodes[:64]]))

    def _node(self, node: Any, others: list[Any]) -> Any:
        if isinstance(node, str) and self.often(0.7):
            return self.text(node)
        if isinstance(node, bool | int | float) and self.often(0.6):
            return self.random.choice((*NUMBERS, float(self.random.choice(NUMBERS[:12])), not node))
        if isinstance(node, dict) and node and self.often(0.7):
            changed = dict(node)
            key = self.random.choice(list(changed))
            item = changed.pop(key)
            if self.often(0.6):
                name = self.random.choice(self.words) if self.words and self.often() else self.text(key)
                changed[name] = item
            return changed
        if isinstance(node, list) and node and self.often(0.7):
            at = self.random.randrange(len(node))
            times = self.random.choice((0, 2, 2, 3, 20))
            return [*node[:at], *([node[at]] * times), *node[at + 1 :]]
        if self.often(0.1):
            for _ in range(self.random.choice((1, 50, 900))):
                node = [node] if self.often() else {"a": node}
            return node
        return self.random.choice((*SCALARS, *NUMBERS, *others))

    def der(self, raw: bytes) -> bytes:
        """One element of a DER tree changed, all lengths around it right."""
        try:
            tree = _parse_der(raw, 0)
        except ValueError:
            return self.bytes(raw)
        paths = list(_der_paths(tree, ()))
        return b"".join(self._encode_der(tree, self.random.choice(paths), ()))

    def _encode_der(self, tree: list[Any], path: tuple[int, ...], at: tuple[int, ...]) -> list[bytes]:
        out: list[bytes] = []
        for i, (tag, content) in enumerate(tree):
            here = (*at, i)
            body = content if isinstance(content, bytes) else b"".join(self._encode_der(content, path, here))
            if here != path:
                out.append(_tagged(tag, body))
                continue
            match self.random.randrange(8):
                case 0:
                    continue
                case 1:
                    out += [_tagged(tag, body)] * 2
                case 2:
                    out.append(tlv(self.random.choice((1, 2, 3, 4, 5, 6, 0x0C, 0x13, 0x17, 0x30, 0x31, 0x80)), body))
                case _:
                    out.append(_tagged(tag, self.bytes(body)))
        return out

    def certificate(self, raw: bytes, key: ec.EllipticCurvePrivateKey, digest: hashes.HashAlgorithm) -> bytes:
        """Of a certificate or CRL, what is signed is changed, and signed by `key` again."""
        try:
            ((_, [signed, algorithm, _]),) = _parse_der(raw, 0, deepest=1)
        except (ValueError, TypeError):
            return self.bytes(raw)
        body = self.der(_tagged(*signed))
        name = _tagged(*algorithm) if self.often(0.9) else self.der(_tagged(*algorithm))
        return sequence(body, name, tlv(3, b"\0" + key.sign(body, ec.ECDSA(digest))))


def unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, altchars=b"-_" if set(text) & set("-_") else None)
    except (binascii.Error, ValueError):
        return b""


def _nodes(value: Any, path: tuple[Any, ...]) -> Any:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if len(path) < 40:
        for key, item in items:
            yield from _nodes(item, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _rebuilt(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(value)
    if isinstance(value, dict):
        return {k: _rebuilt(v, path[1:], change) if k == path[0] else v for k, v in value.items()}
    return [_rebuilt(v, path[1:], change) if i == path[0] else v for i, v in enumerate(value)]


def _parse_der(raw: bytes, depth: int, deepest: int = 12) -> list[Any]:
    """[(tag, bytes or elements)]. Raises ValueError for what is not DER of low tag numbers."""
    items: list[Any] = []
    at = 0
    while at < len(raw):
        tag, size, start = raw[at], raw[at + 1] if at + 1 < len(raw) else 0x80, at + 2
        if size & 0x80:
            digits = size & 0x7F
            start, size = start + digits, int.from_bytes(raw[start : start + digits], "big") if digits else -1
        if tag & 0x1F == 0x1F or size < 0 or start + size > len(raw):
            raise ValueError("not DER")
        content: Any = raw[start : start + size]
        if depth < deepest and (tag & 0x20 or (tag == 4 and size > 2)):
            try:
                content = _parse_der(content, depth + 1, deepest)
            except ValueError:
                if tag & 0x20:
                    raise
        items.append((tag, content))
        at = start + size
    return items


def _der_paths(tree: list[Any], at: tuple[int, ...]) -> Any:
    for i, (_, content) in enumerate(tree):
        yield (*at, i)
        if isinstance(content, list):
            yield from _der_paths(content, (*at, i))


def _tagged(tag: int, content: Any) -> bytes:
    return tlv(tag, content if isinstance(content, bytes) else b"".join(_tagged(t, c) for t, c in content))


def pem_blocks(pem: bytes) -> list[bytes]:
    """DER of each certificate."""
    found = re.findall(rb"-----BEGIN CERTIFICATE-----([^-]*)-----END CERTIFICATE-----", pem)
    return [unbase64(b"".join(block.split()).decode("ascii", "ignore")) for block in found]


def to_pem(blocks: Sequence[bytes]) -> bytes:
    out = b""
    for block in blocks:
        lines = base64.encodebytes(block).replace(b"\n", b"")
        wrapped = b"\n".join(lines[i : i + 64] for i in range(0, len(lines), 64))
        out += b"-----BEGIN CERTIFICATE-----\n" + wrapped + b"\n-----END CERTIFICATE-----\n"
    return out
