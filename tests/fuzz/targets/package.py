"""The sealed package. The first byte says which part: header, manifest, golden prompt, a configuration file that must
be inert, a list of paths, or a whole package, which comes out whole or leaves nothing.

A whole package is a JSON recipe for `packages.Package`, the writer that seals whatever it is told to.
"""

import base64
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.contract import Target
from fuzz.mutation import Mutator
from packages import GOLDEN, KEY, TREE, Package

from antechamber.errors import AgentError
from antechamber.model.digest import hash_tree, list_hash, path_bytes
from antechamber.model.inert import ConfigGuard
from antechamber.model.manifest import Golden, Header, Manifest, refuse_names
from antechamber.model.store import unlock
from antechamber.secret import Secret

DAMAGED = ("package.json", "manifest.sealed", "data/00000000", "data/00000002")
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def _header(raw: bytes) -> None:
    one = Header.parse(raw)
    assert Header.parse(one.encode()) == one


def _manifest(raw: bytes) -> None:
    one = Manifest.parse(raw)
    assert Manifest.parse(one.encode()) == one
    assert all(path_bytes(f.path) for f in one.files)
    list_hash([(f.path, f.sha256) for f in one.files])
    assert one.total_size >= 0


def _golden(raw: bytes) -> None:
    one = Golden.parse(raw)
    assert one.accept
    assert one.accepts(one.accept[0].engine, one.accept[0].precision, one.accept[0].text)


def _inert(raw: bytes) -> None:
    """A file that passes is JSON that names no code, however it streams by."""
    for step in (len(raw) or 1, 7):
        guard = ConfigGuard("sub/tokenizer_config.json")
        for at in range(0, len(raw), step):
            guard.update(memoryview(raw)[at : at + step])
        guard.finish()
    assert not _names_code(json.loads(raw)), "code is named in it"


def _names_code(value: Any) -> bool:
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            if "auto_map" in one:
                return True
            todo += one.values()
        elif isinstance(one, list):
            todo += one
    return False


def _paths(raw: bytes) -> None:
    paths = raw.decode("utf-8", "surrogateescape").split("\0")
    refuse_names(paths)
    for path in paths:
        assert not path.startswith("/")
        assert ".." not in path.split("/")
        assert Path("/root", path).is_relative_to("/root")


def _whole(raw: bytes) -> None:
    try:
        recipe = json.loads(raw)
        package = Package(
            files=[(path, base64.b64decode(data)) for path, data in recipe["files"]],
            segment_size=recipe["segment_size"],
            header=recipe["header"],
            manifest=recipe["manifest"],
        )
        damage = [(str(name), int(at), int(byte) & 0xFF) for name, at, byte in recipe["damage"]]
        if not 4096 <= package.segment_size <= 1 << 16 or len(package.files) > 8:
            return
        if not all(isinstance(path, str) for path, _ in package.files):
            return
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    try:
        _unlock(package, damage, folder)
    finally:
        shutil.rmtree(folder)


def _unlock(package: Package, damage: list[tuple[str, int, int]], folder: Path) -> None:
    try:
        written, wanted = package.write(folder / "package"), package.model_hash
    except Exception:
        return  # the recipe cannot be written
    for name, at, byte in damage:
        if name in DAMAGED and (path := written / name).is_file():
            raw = bytearray(path.read_bytes())
            raw[at % (len(raw) + 1) : at % (len(raw) + 1) + 1] = bytes([byte])
            path.write_bytes(raw)
    destination = folder / "model"
    try:
        model = unlock(
            written,
            Secret(bytearray(KEY)),
            model_hash=wanted,
            destination=destination,
            in_memory=lambda _: True,
            progress=lambda done, total: None,
        )
    except AgentError:
        assert {p.name for p in folder.iterdir()} == {"package"}, "plaintext stays after a refusal"
        raise
    assert hash_tree(destination).model_hash == wanted == model.model_hash
    assert all((destination / path).read_bytes() == data for path, data in package.files)


KINDS: tuple[Callable[[bytes], None], ...] = (_header, _manifest, _golden, _inert, _paths, _whole)


def run(data: bytes) -> None:
    if data:
        KINDS[data[0] % len(KINDS)](data[1:])


def recipe(**changes: Any) -> bytes:
    files = [[path, base64.b64encode(data).decode()] for path, data in TREE.items()]
    value = {"files": files, "segment_size": 4096, "header": {}, "manifest": {}, "damage": []}
    return b"\5" + json.dumps(value | changes).encode()


def seeds() -> list[bytes]:
    shared = {
        "format": "antechamber-sealed/1",
        "package": "00" * 16,
        "key_id": "k1",
        "version": 1,
        "segment_size": 4096,
    }
    entries = [
        {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "data": i}
        for i, (path, data) in enumerate(TREE.items())
    ]
    manifest = shared | {"model_hash": Package().model_hash, "golden": GOLDEN, "files": entries}
    chat = GOLDEN | {"prompt": [{"role": "user", "content": "2+2="}]}
    return [
        b"\0" + json.dumps(shared | {"key_check": "00" * 16, "manifest_size": 100}).encode(),
        b"\1" + json.dumps(manifest).encode(),
        b"\1" + json.dumps(manifest | {"golden": chat}).encode(),
        b"\2" + json.dumps(GOLDEN).encode(),
        b'\3{"auto_map":{"AutoModel":"x.Y"}}',
        b'\3{"architectures":["LlamaForCausalLM"],"a":[{"b":1}]}',
        b"\4config.json\0sub/a.safetensors\0sub/b/c",
        b"\4a/../b",
        recipe(),
        recipe(damage=[["data/00000002", 5000, 1]]),
        recipe(damage=[["manifest.sealed", 3, 1]]),
        recipe(files=[["a.py", ""]]),
        recipe(files=[["../x", "AAAA"]]),
        recipe(manifest={"golden": None}),
    ]


def mutate(m: Mutator, data: bytes) -> bytes:
    kind = data[0] % len(KINDS)
    if kind == 4:
        paths = data[1:].split(b"\0")
        at = m.random.randrange(len(paths))
        paths[at : at + 1] = [m.bytes(paths[at])] * m.random.choice((1, 1, 2))
        return data[:1] + b"\0".join(paths)
    value = json.loads(data[1:])
    if kind == 5:
        key = m.random.choice(("files", "header", "manifest", "damage", "segment_size"))
        value[key] = m.json(value[key])
        if m.often(0.3):
            name = m.random.choice(DAMAGED)
            value["damage"] = [*value["damage"], [name, m.random.randrange(1 << 14), m.random.randrange(256)]]
        if m.often(0.3):
            value[m.random.choice(("header", "manifest"))][m.random.choice(WORDS)] = m.json(
                m.random.choice((1, "a", {}))
            )
    else:
        value = m.json(value)
    return data[:1] + json.dumps(value, ensure_ascii=m.often()).encode("utf-8", "replace")


WORDS = (
    "format", "antechamber-sealed/1", "package", "key_id", "key_check", "version", "segment_size", "manifest_size",
    "model_hash", "golden", "files", "path", "size", "sha256", "data", "midstates", "prompt", "max_tokens", "accept",
    "engine", "precision", "text", "role", "content", "auto_map", "damage", "header", "manifest", "config.json",
    "a/../b", "..", ".", "-", "/", "\\u002e\\u002e", "x.PY", "a.bin", "CON", "\u0130", "\u212a",
)  # fmt: skip
TARGET = Target(name="package", run=run, seeds=seeds, mutate=mutate, words=WORDS, max_len=1 << 15)
