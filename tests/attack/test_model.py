"""A host that owns the disk, and a packer who has the key: what each may change, and the code that refuses it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packages import GOLDEN, KEY, Package, model_hash

from antechamber.errors import AgentError, ModelCorrupt
from antechamber.model.store import unlock
from antechamber.secret import Secret

WEIGHTS = "data/00000002"  # three segments: strides of 8192, then 2048 + 16 bytes


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Package().write(tmp_path / "package")


def refused(package: Path, *, wanted: str = Package().model_hash, key: bytes = KEY, progress: Any = None) -> str:
    """The code of the refusal, after which nothing of the plaintext may be left."""
    memory = package.parent / "memory"
    memory.mkdir()
    with pytest.raises(AgentError) as refusal:
        unlock(
            package,
            Secret(bytearray(key)),
            model_hash=wanted,
            destination=memory / "m",
            in_memory=lambda path: True,
            progress=progress or (lambda done, total: None),
        )
    assert not any(memory.iterdir())
    return refusal.value.code


def edit(path: Path, change: Callable[[bytearray], Any]) -> None:
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)


def flip(at: int) -> Callable[[bytearray], None]:
    def change(raw: bytearray) -> None:
        raw[at] ^= 1

    return change


@pytest.mark.parametrize(
    ("file", "at", "code"),
    [
        ("package.json", 0, "model.header"),
        ("manifest.sealed", 0, "model.manifest"),
        ("manifest.sealed", -1, "model.manifest"),  # tag
        ("data/00000000", 0, "model.segment"),
        ("data/00000001", 0, "model.segment"),  # an empty file is all tag
        (WEIGHTS, 0, "model.segment"),
        (WEIGHTS, 4096, "model.segment"),  # tag
        (WEIGHTS, 4112, "model.segment"),  # padding, first byte
        (WEIGHTS, 8191, "model.segment"),  # padding, last byte
        (WEIGHTS, 8192, "model.segment"),
        (WEIGHTS, -17, "model.segment"),  # last short segment
        (WEIGHTS, -1, "model.segment"),  # its tag
    ],
)
def test_flipped_bit_is_refused(package: Path, file: str, at: int, code: str) -> None:
    edit(package / file, flip(at))
    assert refused(package) == code


def test_swapped_segments_are_refused(package: Path) -> None:
    def swap(raw: bytearray) -> None:
        raw[:8192], raw[8192:16384] = raw[8192:16384], raw[:8192]

    edit(package / WEIGHTS, swap)
    assert refused(package) == "model.segment"


def test_reordered_segments_are_refused(tmp_path: Path) -> None:
    """Each in the place of the one before it; the first becomes the third."""
    long = Package(files=[("w.safetensors", bytes(range(256)) * 64)])  # four segments of 4096 bytes

    def turn(raw: bytearray) -> None:
        raw[: 3 * 8192] = raw[8192 : 3 * 8192] + raw[:8192]

    package = long.write(tmp_path / "package")
    edit(package / "data/00000000", turn)
    assert refused(package, wanted=long.model_hash) == "model.segment"


def test_repeated_segment_is_refused(package: Path) -> None:
    def repeat(raw: bytearray) -> None:
        raw[8192:16384] = raw[:8192]

    edit(package / WEIGHTS, repeat)
    assert refused(package) == "model.segment"


@pytest.mark.parametrize("keep", [0, 1, 8192, 16384, 16384 + 2063])
def test_truncated_data_is_refused(package: Path, keep: int) -> None:
    os.truncate(package / WEIGHTS, keep)
    seen: list[int] = []
    assert refused(package, progress=lambda done, total: seen.append(done)) == "model.truncated"
    assert seen == [7, 7]  # the two files before it: not a segment of its own


def test_data_that_shrinks_while_it_is_read_is_refused(package: Path) -> None:
    def shrink(done: int, total: int) -> None:
        os.truncate(package / WEIGHTS, 8192)

    assert refused(package, progress=shrink) == "model.truncated"


def test_lost_segment_is_refused_when_the_header_still_fits(tmp_path: Path) -> None:
    whole, cut = Package(), Package(files=[(p, d[:4096]) for p, d in Package().files])
    package = whole.write(tmp_path / "package")
    sealed = (package / WEIGHTS).read_bytes()[: 4096 + 16]  # first segment, told to be the last one
    entries = cut.entries()
    whole.files, whole.manifest = cut.files, {"files": entries}
    shutil.rmtree(package)
    whole.write(package)
    (package / WEIGHTS).write_bytes(sealed)
    assert refused(package, wanted=cut.model_hash) == "model.segment"


@pytest.mark.parametrize("file", [WEIGHTS, "manifest.sealed"])
def test_trailing_bytes_are_refused(package: Path, file: str) -> None:
    edit(package / file, lambda raw: raw.append(0))
    assert refused(package) == "model.trailing"


def test_truncated_manifest_is_refused(package: Path) -> None:
    edit(package / "manifest.sealed", lambda raw: raw.pop())
    assert refused(package) == "model.truncated"


def test_swapped_data_files_are_refused(tmp_path: Path) -> None:
    twins = Package(files=[("a", b"1" * 5000), ("b", b"2" * 5000)])
    package = twins.write(tmp_path / "package")
    data = package / "data"
    (data / "00000000").rename(data / "x")
    (data / "00000001").rename(data / "00000000")
    (data / "x").rename(data / "00000001")
    assert refused(package, wanted=twins.model_hash) == "model.segment"


def test_data_of_another_package_with_the_same_key_is_refused(package: Path, tmp_path: Path) -> None:
    other = Package(package=bytes(16)).write(tmp_path / "other")
    shutil.copy(other / WEIGHTS, package / WEIGHTS)
    assert refused(package) == "model.segment"


def test_data_of_another_version_with_the_same_key_is_refused(package: Path, tmp_path: Path) -> None:
    """The same model packed once more: every pack has an id of its own."""
    newer = Package(package=bytes(16), version=2).write(tmp_path / "newer")
    shutil.copy(newer / WEIGHTS, package / WEIGHTS)
    assert refused(package) == "model.segment"


def test_manifest_of_another_package_with_the_same_key_is_refused(package: Path, tmp_path: Path) -> None:
    other = Package(package=bytes(16)).write(tmp_path / "other")
    shutil.copy(other / "manifest.sealed", package / "manifest.sealed")
    assert refused(package) == "model.manifest"


def test_whole_other_package_with_the_same_key_is_refused(tmp_path: Path) -> None:
    other = Package(files=[("config.json", b"{}")]).write(tmp_path / "other")
    assert refused(other) == "model.hash"


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"version": 1', b'"version": 2'), (b'"key_id": "k1"', b'"key_id": "k2"'), (b'"key_id"', b' "key_id"')],
)
def test_header_that_says_something_else_is_refused(package: Path, old: bytes, new: bytes) -> None:
    header = package / "package.json"
    assert old in header.read_bytes()
    header.write_bytes(header.read_bytes().replace(old, new))
    assert refused(package) == "model.manifest"


@pytest.mark.parametrize("field", ["version", "segment_size", "key_id"])
def test_manifest_that_contradicts_its_header_is_refused(tmp_path: Path, field: str) -> None:
    value = {"version": 2, "segment_size": 8192, "key_id": "k2"}[field]
    assert refused(Package(manifest={field: value}).write(tmp_path / "p")) == "model.manifest"


def test_newer_format_is_refused(tmp_path: Path) -> None:
    assert refused(Package(header={"format": "antechamber-sealed/2"}).write(tmp_path / "p")) == "model.header"


def test_wrong_key_is_refused_as_a_wrong_key(package: Path) -> None:
    assert refused(package, key=bytes(32)) == "model.key"


def test_key_check_of_another_key_is_refused(tmp_path: Path) -> None:
    assert refused(Package(header={"key_check": "00" * 16}).write(tmp_path / "p")) == "model.key"


@pytest.mark.parametrize(
    "path",
    ["../escape", "/etc/escape", "sub/../../escape", "./a", "a//b", "a/", "", ".", "..", "a\nb", "a\\b", "-", "a\0b"],
)
def test_malicious_name_is_refused(tmp_path: Path, path: str) -> None:
    evil = Package(files=[("config.json", b"{}"), (path, b"x")])
    assert refused(evil.write(tmp_path / "p"), wanted=evil.model_hash) == "model.name"
    assert not list(tmp_path.rglob("escape"))


@pytest.mark.parametrize("second", ["a", "A", "a/b"])
def test_duplicate_or_colliding_names_are_refused(tmp_path: Path, second: str) -> None:
    evil = Package(files=[("a", b"1"), (second, b"2")])
    assert refused(evil.write(tmp_path / "p"), wanted=evil.model_hash) == "model.name"


def test_two_names_for_one_data_file_are_refused(tmp_path: Path) -> None:
    evil = Package(files=[("a", b"1"), ("b", b"1")])
    evil.manifest = {"files": [entry | {"data": 0} for entry in evil.entries()]}
    assert refused(evil.write(tmp_path / "p"), wanted=evil.model_hash) == "model.manifest"


def test_content_that_differs_from_its_listed_digest_is_refused(tmp_path: Path) -> None:
    evil, good = Package(files=[("a", b"trojan")]), Package(files=[("a", b"honest")])
    evil.manifest = {"files": good.entries(), "model_hash": good.model_hash}
    assert refused(evil.write(tmp_path / "p"), wanted=good.model_hash) == "model.hash"


def test_first_file_that_differs_from_its_listed_digest_ends_the_reading(tmp_path: Path) -> None:
    evil, good = Package(files=[("a", b"trojan"), ("b", b"x")]), Package(files=[("a", b"honest"), ("b", b"x")])
    evil.manifest = {"files": good.entries(), "model_hash": good.model_hash}
    seen: list[int] = []
    package = evil.write(tmp_path / "p")
    assert refused(package, wanted=good.model_hash, progress=lambda done, total: seen.append(done)) == "model.hash"
    assert seen == [6]


def test_manifest_that_claims_another_model_hash_is_refused_before_any_file_is_read(tmp_path: Path) -> None:
    good = Package().model_hash
    evil = Package(files=[("a", b"trojan")], manifest={"model_hash": good})
    seen: list[int] = []
    package = evil.write(tmp_path / "p")
    assert refused(package, wanted=good, progress=lambda done, total: seen.append(done)) == "model.hash"
    assert not seen


def test_files_in_another_order_are_the_same_model_and_only_that(tmp_path: Path) -> None:
    turned = Package(files=Package().files[::-1])
    assert turned.model_hash == Package().model_hash
    turned.write(tmp_path / "p")
    assert refused(tmp_path / "p", wanted=model_hash({"empty": b""})) == "model.hash"


@pytest.mark.parametrize("golden", [None, GOLDEN | {"accept": []}, {}, "4"])
def test_absent_or_empty_golden_answer_is_refused(tmp_path: Path, golden: Any) -> None:
    assert refused(Package(manifest={"golden": golden}).write(tmp_path / "p")) == "model.golden"


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("modeling_evil.py", b""),
        ("pytorch_model.bin", b""),
        ("weights.PT", b""),
        ("config.json", b'{"auto_map":{"AutoModel":"evil.Model"}}'),
        ("x/tokenizer_config.json", b'{"nested":[{"auto\\u005fmap":{}}]}'),
        ("config.json", b"{not json"),
    ],
)
def test_model_that_would_run_code_is_refused(tmp_path: Path, path: str, content: bytes) -> None:
    evil = Package(files=[(path, content)])
    assert refused(evil.write(tmp_path / "p"), wanted=evil.model_hash) == "model.code"


@pytest.mark.parametrize("file", ["package.json", "manifest.sealed", WEIGHTS, "data"])
@pytest.mark.parametrize("kind", ["link", "fifo", "missing"])
def test_package_file_that_is_not_a_plain_file_is_refused(package: Path, file: str, kind: str) -> None:
    target, moved = package / file, package / "moved"
    target.rename(moved)
    if kind == "link":
        target.symlink_to(moved)
    elif kind == "fifo":
        os.mkfifo(target)  # would block for ever, were it opened to be read
    assert refused(package) == ("model.missing" if kind == "missing" else "model.special")


@pytest.mark.root
@pytest.mark.root
def test_device_in_the_package_is_refused(package: Path) -> None:
    (package / WEIGHTS).unlink()
    try:
        os.mknod(package / WEIGHTS, 0o20600, os.makedev(1, 5))  # /dev/zero: endless
    except PermissionError:
        pytest.skip("mknod needs CAP_MKNOD")
    assert refused(package) in ("model.special", "model.io")


def test_ciphertext_rewritten_after_it_was_read_changes_nothing(package: Path, tmp_path: Path) -> None:
    def rewrite(done: int, total: int) -> None:
        if done:  # config.json was read: its second reading would be garbage
            (package / "data" / "00000000").write_bytes(bytes(23))

    (tmp_path / "memory").mkdir()
    model = unlock(
        package,
        Secret(bytearray(KEY)),
        model_hash=Package().model_hash,
        destination=tmp_path / "memory" / "m",
        in_memory=lambda path: True,
        progress=rewrite,
    )
    assert (model.path / "config.json").read_bytes() == dict(Package().files)["config.json"]


def test_refusals_never_carry_the_key(package: Path, tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    with pytest.raises(ModelCorrupt) as refusal:
        unlock(
            package,
            Secret(bytearray(b"K" * 32)),
            model_hash=Package().model_hash,
            destination=tmp_path / "memory" / "m",
            in_memory=lambda path: True,
            progress=lambda done, total: None,
        )
    assert "KKKK" not in f"{refusal.value} {refusal.value.hint}"
    assert (b"K" * 32).hex() not in f"{refusal.value} {refusal.value.hint}"
