import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from antechamber.broker.audit import Audit, Record, evidence_digests, session_digest
from antechamber.broker.store import MAX_RESOURCE, Database, Store, load_master_key
from antechamber.errors import AgentError, ConfigError
from antechamber.secret import Secret

RECORD = Record(time=1, session="s", peer="127.0.0.1", resource="a/b/c", decision="released", policy="sha256:00")


def store(path: Path, key: bytes = bytes(32)) -> Store:
    return Store(Database(str(path / "db")), Secret(bytearray(key)))


def value_of(secret: Secret | None) -> bytes | None:
    if secret is None:
        return None
    with secret as value:
        return bytes(value)


def test_store_returns_the_newest_version(tmp_path: Path) -> None:
    kept = store(tmp_path)
    assert kept.get("a/b/c") is None
    assert [kept.put("a/b/c", value) for value in (b"first", b"second")] == [1, 2]
    assert value_of(kept.get("a/b/c")) == b"second"
    assert value_of(store(tmp_path).get("a/b/c")) == b"second"


def test_store_counts_on_after_a_delete_so_no_version_returns(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.put("a/b/c", b"first")
    assert kept.delete("a/b/c")
    assert not kept.delete("a/b/c")
    assert kept.get("a/b/c") is None
    assert kept.put("a/b/c", b"second") == 2


def test_store_leaves_no_plaintext_and_no_key_in_its_files(tmp_path: Path) -> None:
    kept = store(tmp_path, b"K" * 32)
    kept.put("a/b/c", b"a very secret value")
    for file in tmp_path.iterdir():
        assert b"very secret" not in file.read_bytes()
        assert b"K" * 32 not in file.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE resource SET path = 'x/y/z'",
        "UPDATE resource SET version = 7",
        "UPDATE resource SET sealed = CAST(substr(sealed, 1, 20) || x'00' || substr(sealed, 22) AS BLOB)",
        "UPDATE resource SET sealed = x'00'",
    ],
)
def test_store_refuses_a_value_that_was_moved_or_changed(tmp_path: Path, change: str) -> None:
    kept = store(tmp_path)
    kept.put("a/b/c", b"value that is long enough")
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute(change)
    with pytest.raises(ConfigError) as refused:
        kept.get("x/y/z" if "path" in change else "a/b/c")
    assert refused.value.code == "broker.sealed"


def test_store_refuses_another_master_key(tmp_path: Path) -> None:
    store(tmp_path).put("a/b/c", b"value")
    with pytest.raises(ConfigError) as refused:
        store(tmp_path, b"1" * 32).get("a/b/c")
    assert refused.value.code == "broker.sealed"


@pytest.mark.parametrize("size", [0, MAX_RESOURCE + 1])
def test_store_refuses_a_size(tmp_path: Path, size: int) -> None:
    with pytest.raises(ConfigError) as refused:
        store(tmp_path).put("a/b/c", bytes(size))
    assert refused.value.code == "broker.resource-size"


def test_database_refuses_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ConfigError) as refused:
        Database(str(tmp_path / "db"))
    assert refused.value.code == "broker.database"


def test_database_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    Database(str(tmp_path / "db"))
    assert (tmp_path / "db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("size", "mode"), [(31, 0o600), (33, 0o600), (32, 0o640), (32, 0o604)])
def test_master_key_refuses_a_file(tmp_path: Path, size: int, mode: int) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(bytes(size))
    path.chmod(mode)
    with pytest.raises(AgentError) as refused:
        load_master_key(str(path))
    assert refused.value.code == "broker.master-key"


def test_audit_keeps_records_in_order(tmp_path: Path) -> None:
    audit = Audit(Database(str(tmp_path / "db")))
    audit.add(RECORD)
    audit.add(Record(time=2, session="", peer="", resource="\ud800", decision="refused", code="rules.none"))
    first, second = audit.records()
    assert first == RECORD
    assert (second.decision, second.resource) == ("refused", "?")


def test_audit_keeps_decisions_and_the_newest_of_strangers(tmp_path: Path) -> None:
    audit = Audit(Database(str(tmp_path / "db")), strangers=3)
    audit.add(RECORD)
    for i in range(10):
        audit.note(replace(RECORD, decision="refused", code=f"kbs.{i}", detail="x" * 9000))
    audit.add(RECORD)
    kept = audit.records()
    assert [r.code for r in kept] == ["", "kbs.7", "kbs.8", "kbs.9", ""]
    assert len(kept[1].detail) == 400
    assert [r.code for r in audit.records(2)] == ["kbs.9", ""]


@pytest.mark.parametrize("change", ["UPDATE audit SET decision = 'refused'", "DELETE FROM audit"])
def test_audit_refuses_change(tmp_path: Path, change: str) -> None:
    Audit(Database(str(tmp_path / "db"))).add(RECORD)
    with sqlite3.connect(tmp_path / "db") as db, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.execute(change)


def test_digests_name_no_secret() -> None:
    assert session_digest("0123") not in ("0123", "")
    assert set(json.loads(evidence_digests(b"q", None, ""))) == {"quote", "event_log", "additional"}


def test_database_that_is_only_read_takes_no_write(tmp_path: Path) -> None:
    path = str(tmp_path / "broker.sqlite")
    Database(path).close()
    with pytest.raises(sqlite3.OperationalError, match="readonly"), Database(path, read_only=True).write() as db:
        db.execute("INSERT INTO moment VALUES (1, 1)")
    (tmp_path / "other").write_bytes(b"")
    with pytest.raises(ConfigError, match="no such table"):
        Database(str(tmp_path / "other"), read_only=True)
