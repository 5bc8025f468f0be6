import os
import stat
from pathlib import Path

import pytest

from antechamber.errors import ConfigError, ModelCorrupt
from antechamber.model.digest import hash_tree
from antechamber.model.manifest import Accept, Golden, Header
from antechamber.model.pack import new_key_file, pack, read_key_file
from antechamber.secret import Secret

GOLDEN = Golden("2+2=", 4, (Accept("builtin", "float32", "4"),))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "sub").mkdir(parents=True)
    (root / "config.json").write_bytes(b'{"architectures":["X"]}')
    (root / "sub" / "w.safetensors").write_bytes(bytes(10_000))
    return root


def seal(source: Path, out: Path, **options: object) -> str:
    return pack(
        source,
        out,
        Secret(bytearray(32)),
        **({"golden": GOLDEN, "key_id": "k1", "segment_size": 4096} | options),  # type: ignore[arg-type]
    )


def test_pack_returns_model_hash_and_counts_bytes(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = seal(source, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert found == hash_tree(source).model_hash
    assert seen[-1] == (10_023, 10_023)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_pack_writes_fresh_keys_and_ids_so_that_equal_files_never_look_equal(source: Path, tmp_path: Path) -> None:
    (source / "twin").write_bytes(bytes(10_000))
    seal(source, tmp_path / "a")
    seal(source, tmp_path / "b")
    stored = [(tmp_path / p / "data" / f"{n:08d}").read_bytes()[:4096] for p in "ab" for n in (1, 2)]
    assert len(set(stored)) == 4


def test_pack_keeps_names_and_content_out_of_the_package(source: Path, tmp_path: Path) -> None:
    seal(source, tmp_path / "out")
    everything = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    for secret in (b"safetensors", b"architectures", b"2+2="):
        assert secret not in everything


def test_pack_refuses_and_keeps_when_the_destination_exists(source: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "out", source / "inside"):
        if out.name == "out":
            out.mkdir()
        with pytest.raises(ConfigError) as refused:
            seal(source, out)
        assert refused.value.code == "model.destination"


@pytest.mark.parametrize("options", [{"key_id": ""}, {"version": 0}, {"segment_size": 1000}, {"segment_size": 1 << 30}])
def test_pack_refuses_when_a_parameter_is_out_of_range(
    source: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    with pytest.raises(ConfigError) as refused:
        seal(source, tmp_path / "out", **options)
    assert refused.value.code == "model.parameter"


def test_pack_leaves_nothing_when_a_file_changes_while_it_is_read(source: Path, tmp_path: Path) -> None:
    weights = source / "sub" / "w.safetensors"

    def truncate(done: int, total: int) -> None:
        os.truncate(weights, 5000)

    def append(done: int, total: int) -> None:
        with weights.open("ab") as file:
            file.write(b"x")

    def rewrite(done: int, total: int) -> None:
        if done > 5000:  # same size, read already
            with weights.open("r+b") as file:
                file.write(b"x")

    for change in (truncate, append, rewrite):
        weights.write_bytes(bytes(10_000))
        os.utime(weights, ns=(1, 1))

        def once_open(done: int, total: int, change: object = change) -> None:
            if 23 < done < 10_023:
                change(done, total)  # type: ignore[operator]

        with pytest.raises(ModelCorrupt) as refused:
            seal(source, tmp_path / "out", progress=once_open)
        assert refused.value.code == "model.changed"
        assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit])
def test_pack_leaves_nothing_when_interrupted(source: Path, tmp_path: Path, failure: type[BaseException]) -> None:
    def interrupt(done: int, total: int) -> None:
        raise failure

    with pytest.raises(failure):
        seal(source, tmp_path / "out", progress=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("path", "data", "code"),
    [
        ("modeling_x.py", b"", "model.code"),
        ("pytorch_model.bin", b"", "model.code"),
        ("config.json", b'{"auto_map":{"AutoConfig":"x.Y"}}', "model.code"),
        ("tokenizer_config.json", b'{"a":[{"\\u0061uto_map":1}]}', "model.code"),
        ("sub/CONFIG.JSON", b"not json", "model.code"),
        ("generation_config.json", b"\xff", "model.code"),
        ("Sub/x", b"", "model.name"),
        ("CONFIG.json", b"{}", "model.name"),
        ("a\\b", b"", "model.name"),
    ],
)
def test_pack_refuses_what_unlock_would_refuse(source: Path, tmp_path: Path, path: str, data: bytes, code: str) -> None:
    (source / path).parent.mkdir(exist_ok=True)
    (source / path).write_bytes(data)
    with pytest.raises(ModelCorrupt) as refused:
        seal(source, tmp_path / "out")
    assert refused.value.code == code
    assert not (tmp_path / "out").exists()


def test_pack_refuses_names_before_it_reads(source: Path, tmp_path: Path) -> None:
    (source / "zz.py").touch()
    seen: list[int] = []
    with pytest.raises(ModelCorrupt) as refused:
        seal(source, tmp_path / "out", progress=lambda done, total: seen.append(done))
    assert refused.value.code == "model.code"
    assert not seen


def test_pack_takes_a_vocabulary_that_has_the_word_auto_map(source: Path, tmp_path: Path) -> None:
    (source / "vocab.json").write_bytes(b'{"auto_map":7}')
    seal(source, tmp_path / "out")


def test_pack_refuses_an_empty_tree_and_links(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelCorrupt) as refused:
        seal(tmp_path / "empty", tmp_path / "out")
    assert refused.value.code == "model.empty"
    (source / "link").symlink_to("config.json")
    with pytest.raises(ModelCorrupt) as refused:
        seal(source, tmp_path / "out")
    assert refused.value.code == "model.special"


def test_pack_binds_version_and_key_id_in_the_header(source: Path, tmp_path: Path) -> None:
    seal(source, tmp_path / "out", version=9, key_id="prod/2026-11")
    header = Header.parse((tmp_path / "out" / "package.json").read_bytes())
    assert (header.version, header.key_id, header.segment_size) == (9, "prod/2026-11", 4096)


def test_key_file_is_new_private_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "model.key"
    with new_key_file(path) as key, read_key_file(path) as again:
        assert bytes(key) == bytes(again) == path.read_bytes()
        assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError) as refused:
        new_key_file(path)
    assert refused.value.code == "model.destination"


@pytest.mark.parametrize("size", [0, 31, 33, 5000])
def test_key_file_is_refused_when_it_is_not_32_bytes(tmp_path: Path, size: int) -> None:
    (tmp_path / "k").write_bytes(bytes(size))
    with pytest.raises(ModelCorrupt) as refused:
        read_key_file(tmp_path / "k")
    assert refused.value.code == "model.key"
