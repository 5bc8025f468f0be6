import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antechamber.errors import ModelCorrupt
from antechamber.model.digest import hash_tree, list_hash, path_bytes

ONE_LINER = r"set -o pipefail; find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 -r sha256sum -- | sha256sum"
ODD = [
    "a b",
    " leading",
    "trailing ",
    "-rf",
    "--help",
    "sub/-",
    "*",
    "?[a-z]",
    "$(id)`id`",
    "ünï/c öde",
    "日本語",
    "a",
    "a/b".replace("a/", "a.d/"),
    "a-b",
    "a.b/c",
    "a0",
    "A",
    "tab\tname",
    "'quote\"",
    ".hidden/.x",
    "\x7f",
    "~",
    "e\u0301",
]


def coreutils(directory: Path) -> str:
    run = subprocess.run(["bash", "-c", ONE_LINER], cwd=directory, capture_output=True, text=True, check=True)
    return "sha256:" + run.stdout.split()[0]


def plant(root: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def test_hash_tree_equals_coreutils_for_odd_names(tmp_path: Path) -> None:
    plant(tmp_path, {name: name.encode() * i for i, name in enumerate(ODD)})
    (tmp_path / "nothing in it").mkdir()
    assert hash_tree(tmp_path).model_hash == coreutils(tmp_path)


names = st.text(
    st.characters(exclude_characters="/\\\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda n: n not in (".", "..", "-") and len(n.encode()) <= 255)


@settings(max_examples=25, deadline=None)
@given(files=st.dictionaries(names, st.binary(max_size=50), min_size=1, max_size=6), below=st.booleans())
def test_hash_tree_equals_coreutils_for_any_names(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], below: bool
) -> None:
    root = tmp_path_factory.mktemp("t")
    plant(root, {f"x {i}/{n}" if below and i % 2 else n: d for i, (n, d) in enumerate(files.items())})
    assert hash_tree(root).model_hash == coreutils(root)


def test_hash_tree_counts_bytes_and_lists_files_in_order(tmp_path: Path) -> None:
    plant(tmp_path, {"b": b"x" * 300_000, "a/c": b"", "a.b": b"1"})
    seen: list[tuple[int, int]] = []
    tree = hash_tree(tmp_path, lambda done, total: seen.append((done, total)))
    assert [(f.path, f.size) for f in tree.files] == [("a.b", 1), ("a/c", 0), ("b", 300_000)]
    assert seen[-1] == (300_001, 300_001)


def test_list_hash_depends_on_names_and_not_on_order() -> None:
    one, two = "11" * 32, "22" * 32
    assert list_hash([("a", one), ("b", two)]) == list_hash([("b", two), ("a", one)])
    assert list_hash([("a", one), ("b", two)]) != list_hash([("b", one), ("a", two)])


@pytest.mark.parametrize("name", [b"a\nb", b"a\rb", b"a\\b", b"-", b"\xff", b"sub/\xff"])
def test_hash_tree_refuses_a_name_that_coreutils_would_escape_or_misread(tmp_path: Path, name: bytes) -> None:
    target = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb"):
        pass
    with pytest.raises(ModelCorrupt) as refused:
        hash_tree(tmp_path)
    assert refused.value.code == "model.name"


@pytest.mark.parametrize("kind", ["link", "dangling", "directory link", "fifo", "socket"])
def test_hash_tree_refuses_what_is_not_a_regular_file(tmp_path: Path, kind: str) -> None:
    plant(tmp_path, {"real/f": b"1"})
    odd = tmp_path / "real" / "odd"
    with socket.socket(socket.AF_UNIX) as unix:
        match kind:
            case "link":
                odd.symlink_to("f")
            case "dangling":
                odd.symlink_to("nowhere")
            case "directory link":
                odd.symlink_to(tmp_path)
            case "fifo":
                os.mkfifo(odd)
            case _:
                here = os.getcwd()
                os.chdir(odd.parent)  # AF_UNIX paths are short
                try:
                    unix.bind(odd.name)
                finally:
                    os.chdir(here)
        with pytest.raises(ModelCorrupt) as refused:
            hash_tree(tmp_path)
    assert refused.value.code == "model.special"


@pytest.mark.root
@pytest.mark.root
def test_hash_tree_refuses_a_device(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "null", 0o20600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("mknod needs CAP_MKNOD")
    with pytest.raises(ModelCorrupt) as refused:
        hash_tree(tmp_path)
    assert refused.value.code == "model.special"


def test_hash_tree_refuses_an_empty_tree(tmp_path: Path) -> None:
    (tmp_path / "only" / "directories").mkdir(parents=True)
    with pytest.raises(ModelCorrupt) as refused:
        hash_tree(tmp_path)
    assert refused.value.code == "model.empty"


def test_hash_tree_refuses_a_directory_that_is_not_there_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for path, code in (("none", "model.missing"), ("f", "model.special")):
        with pytest.raises(ModelCorrupt) as refused:
            hash_tree(tmp_path / path)
        assert refused.value.code == code


@given(st.text(max_size=40) | st.sampled_from(["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/.", "-", "\ud800"]))
def test_path_bytes_stays_inside_or_refuses_any_text(path: str) -> None:
    raw = b""
    with suppress(ModelCorrupt):
        raw = path_bytes(path)
    if not raw:
        return
    assert not raw.startswith(b"/")
    assert not {b"", b".", b".."} & set(raw.split(b"/"))
