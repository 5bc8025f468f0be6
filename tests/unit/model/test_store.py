import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packages import KEY, TREE, Package

from antechamber.errors import AgentError, ConfigError, ModelCorrupt, PlatformUnfit
from antechamber.model.manifest import Accept, Golden
from antechamber.model.pack import pack
from antechamber.model.store import Model, destroy, unlock
from antechamber.secret import Secret


def open_package(
    package: Path,
    destination: Path,
    model_hash: str = Package().model_hash,
    *,
    key: Secret | None = None,
    in_memory: Callable[[str], bool] = lambda path: True,
    progress: Callable[[int, int], None] = lambda done, total: None,
    floor: int = 1,
) -> Model:
    return unlock(
        package,
        key or Secret(bytearray(KEY)),
        model_hash=model_hash,
        destination=destination,
        in_memory=in_memory,
        progress=progress,
        floor=floor,
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Package(version=3).write(tmp_path / "package")


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    (tmp_path / "memory").mkdir()
    return tmp_path / "memory"


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_unlock_opens_what_a_second_writer_sealed(package: Path, memory: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = open_package(package, memory / "m", progress=lambda done, total: seen.append((done, total)))
    assert content(memory / "m") == TREE
    assert (model.path, model.version, model.key_id) == (memory / "m", 3, "k1")
    assert model.golden.accepts("builtin", "float32", "4")
    assert [f.path for f in model.files] == list(TREE)
    total = sum(map(len, TREE.values()))
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_unlock_leaves_group_readable_modes_whatever_the_umask(package: Path, memory: Path) -> None:
    before = os.umask(0o077)
    try:
        open_package(package, memory / "m")
    finally:
        os.umask(before)
    modes = {str(p.relative_to(memory)): stat.S_IMODE(p.stat().st_mode) for p in memory.rglob("*")}
    assert modes == {"m": 0o750, "m/sub": 0o750, "m/config.json": 0o640, "m/empty": 0o640, "m/sub/w.safetensors": 0o640}


def test_unlock_keeps_the_group_of_a_set_group_id_directory(package: Path, memory: Path) -> None:
    memory.chmod(0o2750)
    open_package(package, memory / "m")
    assert stat.S_IMODE((memory / "m" / "sub").stat().st_mode) == 0o2750


def test_unlock_shows_nothing_before_all_of_it_is_verified(package: Path, memory: Path) -> None:
    def look(done: int, total: int) -> None:
        assert not (memory / "m").exists()
        assert [stat.S_IMODE(p.stat().st_mode) for p in memory.iterdir()] == [0o700]

    open_package(package, memory / "m", progress=look)


def test_unlock_refuses_when_the_destination_is_not_in_memory(package: Path, memory: Path) -> None:
    asked: list[str] = []
    with pytest.raises(PlatformUnfit) as refused:
        open_package(package, memory / "m", in_memory=lambda path: bool(asked.append(path)))
    assert refused.value.code == "model.not-memory"
    assert asked == [str(memory.resolve())]
    assert not any(memory.iterdir())


def test_unlock_refuses_and_keeps_when_the_destination_exists(package: Path, memory: Path) -> None:
    (memory / "m").mkdir()
    (memory / "m" / "mine").touch()
    with pytest.raises(ConfigError) as refused:
        open_package(package, memory / "m")
    assert refused.value.code == "model.destination"
    assert (memory / "m" / "mine").exists()


def test_unlock_removes_what_a_killed_run_left(package: Path, memory: Path) -> None:
    (memory / ".m.partial" / "sub").mkdir(parents=True)
    (memory / ".m.partial" / "sub" / "w.safetensors").write_bytes(b"half")
    open_package(package, memory / "m")
    assert [p.name for p in memory.iterdir()] == ["m"]


def test_unlock_refuses_when_another_unlock_is_at_work(package: Path, memory: Path) -> None:
    codes: list[str] = []

    def again(done: int, total: int) -> None:
        with pytest.raises(ConfigError) as refused:
            open_package(package, memory / "m")
        codes.append(refused.value.code)

    open_package(package, memory / "m", progress=again)
    assert set(codes) == {"model.destination"}
    assert content(memory / "m") == TREE


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_unlock_leaves_nothing_when_interrupted(
    package: Path, memory: Path, failure: type[BaseException], at: int
) -> None:
    count = iter(range(100))

    def interrupt(done: int, total: int) -> None:
        if next(count) == at:
            raise failure

    with pytest.raises(failure):
        open_package(package, memory / "m", progress=interrupt)
    assert not any(memory.iterdir())


def test_unlock_refuses_before_writing_when_space_is_short(package: Path, memory: Path) -> None:
    huge = Package()
    entries = huge.entries()
    entries[2]["size"] = 1 << 49
    huge.manifest = {"files": entries}
    with pytest.raises(PlatformUnfit) as refused:
        open_package(huge.write(package.parent / "huge"), memory / "m")
    assert refused.value.code == "model.space"
    assert not any(memory.iterdir())


@pytest.mark.root
@pytest.mark.root
def test_unlock_leaves_nothing_when_the_tmpfs_is_full(package: Path, memory: Path) -> None:
    if os.system(f"mount -t tmpfs -o size=16k,mode=700 none {memory} 2>/dev/null"):
        pytest.skip("mounting needs CAP_SYS_ADMIN")
    try:
        with pytest.raises(PlatformUnfit) as refused:  # fits by its sizes: another file takes the room meanwhile
            open_package(
                package,
                memory / "m",
                progress=lambda done, total: (memory / "rival").exists() or _fill(memory / "rival"),
            )
        assert refused.value.code == "model.space"
        assert [p.name for p in memory.iterdir()] == ["rival"]
    finally:
        os.system(f"umount {memory}")


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as rival:
        try:
            while True:
                rival.write(bytes(4096))
        except OSError:
            return


def test_unlock_spends_the_key_also_when_it_refuses(package: Path, memory: Path) -> None:
    for destination, model_hash in ((memory / "m", "sha256:" + "00" * 32), (memory / "n", "nonsense")):
        key = Secret(bytearray(KEY))
        with pytest.raises(ModelCorrupt) as refused:
            open_package(package, destination, model_hash, key=key)
        assert refused.value.code == "model.hash"
        with pytest.raises(RuntimeError), key:
            pass


def test_unlock_refuses_when_the_version_is_below_the_floor(package: Path, memory: Path) -> None:
    with pytest.raises(ModelCorrupt) as refused:
        open_package(package, memory / "m", floor=4)
    assert refused.value.code == "model.version"
    open_package(package, memory / "m", floor=3)


def test_destroy_removes_the_plaintext_and_may_be_called_twice(package: Path, memory: Path) -> None:
    model = open_package(package, memory / "m")
    destroy(model)
    destroy(model)
    assert not any(memory.iterdir())


GOLDEN = Golden("2+2=", 4, (Accept("builtin", "float32", "4"),))
names = st.text(st.sampled_from("abc é-*"), min_size=1, max_size=6).filter(lambda n: n != "-")
sizes = st.sampled_from([0, 1, 4095, 4096, 4097, 8192, 12_000])


@settings(max_examples=15, deadline=None)
@given(tree=st.dictionaries(st.tuples(st.sampled_from(["", "x/", "x/y/"]), names), sizes, min_size=1, max_size=8))
def test_any_tree_survives_pack_and_unlock(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[tuple[str, str], int]
) -> None:
    root = tmp_path_factory.mktemp("t")
    files = {d + "f" + n: os.urandom(size) for (d, n), size in tree.items()}
    for path, data in files.items():
        (root / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "source" / path).write_bytes(data)
    key = bytearray(KEY)
    found = pack(root / "source", root / "package", Secret(key), golden=GOLDEN, key_id="k1", segment_size=4096)
    (root / "memory").mkdir()
    model = open_package(root / "package", root / "memory" / "m", found)
    assert content(model.path) == files
    assert key == bytes(32)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_changed_byte_of_a_package_ever_unlocks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("t")
    package = Package().write(root / "package")
    (root / "memory").mkdir()
    targets = sorted(p for p in package.rglob("*") if p.is_file())
    target = data.draw(st.sampled_from(targets))
    raw = bytearray(target.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    target.write_bytes(raw)
    with pytest.raises(AgentError) as refused:
        open_package(package, root / "memory" / "m")
    assert refused.value.code in (
        "model.header",
        "model.key",
        "model.manifest",
        "model.segment",
        "model.truncated",
        "model.trailing",
    )
    assert not any((root / "memory").iterdir())
