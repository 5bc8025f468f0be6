"""The broker's database: sealed resources, what was released, and the audit trail; one SQLite file."""

import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from os import urandom
from pathlib import Path
from urllib.parse import quote

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from antechamber.broker.commits import Commits
from antechamber.errors import ConfigError
from antechamber.secret import Secret

MAX_RESOURCE = 512 << 10  # bytes
_NONCE = 12  # bytes

_SCHEMA = """
CREATE TABLE IF NOT EXISTS resource (
  path TEXT PRIMARY KEY, version INTEGER NOT NULL, sealed BLOB NOT NULL, time INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS version (path TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS audit (
  id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, session TEXT NOT NULL, peer TEXT NOT NULL,
  resource TEXT NOT NULL, decision TEXT NOT NULL, code TEXT NOT NULL, detail TEXT NOT NULL,
  evidence TEXT NOT NULL, policy TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS stranger (
  id INTEGER PRIMARY KEY AUTOINCREMENT, after INTEGER NOT NULL, time INTEGER NOT NULL, session TEXT NOT NULL,
  peer TEXT NOT NULL, resource TEXT NOT NULL, decision TEXT NOT NULL, code TEXT NOT NULL, detail TEXT NOT NULL,
  evidence TEXT NOT NULL, policy TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS moment (id INTEGER PRIMARY KEY CHECK (id = 1), time INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS release (
  id INTEGER PRIMARY KEY, path TEXT NOT NULL, guest TEXT NOT NULL, phase TEXT NOT NULL, time INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS release_by_path ON release (path, time);
CREATE INDEX IF NOT EXISTS release_by_guest ON release (guest);
CREATE TABLE IF NOT EXISTS holder (
  path TEXT NOT NULL, guest TEXT NOT NULL, released INTEGER NOT NULL, leased INTEGER NOT NULL,
  PRIMARY KEY (path, guest)) STRICT;
CREATE INDEX IF NOT EXISTS holder_by_guest ON holder (guest);
CREATE INDEX IF NOT EXISTS holder_by_release ON holder (path, released);
CREATE INDEX IF NOT EXISTS holder_by_lease ON holder (path, leased);
CREATE TRIGGER IF NOT EXISTS audit_keeps BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER IF NOT EXISTS audit_stays BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
"""


class Database:
    """Two connections, shared by the broker's threads: what one leaves is on the disk, and there the other reads it."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        """`read_only`: as another process left it; empty where there is none. Raises ConfigError `broker.database`."""
        self._lock = threading.Lock()
        try:
            self._writing = _peek(path) if read_only else _open(path)
            self._reading = _peek(path)
        except (sqlite3.Error, OSError) as e:
            raise ConfigError("broker.database", f"{path}: {e}", hint="give a database this version wrote") from e
        self._commits = Commits(self._writing)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """What is on the disk: waits for no write."""
        with self._lock:
            yield self._reading

    def write(self) -> AbstractContextManager[sqlite3.Connection]:
        """One transaction; see `Commits`. Raises sqlite3.Error."""
        return self._commits.transaction()

    def close(self) -> None:
        with self._lock:
            self._reading.close()
            self._writing.close()


def _open(path: str) -> sqlite3.Connection:
    Path(path).touch(mode=0o600)
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA secure_delete=ON")
    connection.executescript(_SCHEMA)
    return connection


def _peek(path: str) -> sqlite3.Connection:
    if not Path(path).exists():
        connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        connection.executescript(_SCHEMA)
        return connection
    uri = f"file:{quote(str(Path(path).absolute()))}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
    connection.execute("SELECT 1 FROM resource, moment, release, holder LIMIT 0")
    return connection


def has_resource(database: Database, path: str) -> bool:
    """Whether a resource was uploaded; no key is needed to know."""
    with database.read() as db:
        return db.execute("SELECT 1 FROM resource WHERE path = ?", (path,)).fetchone() is not None


def load_master_key(path: str) -> Secret:
    """32 bytes from a file that only its owner reads. Raises ConfigError `broker.master-key`."""
    hint = "keep 32 bytes in a file of mode 0600, made by `antechamber broker init`"
    try:
        with Path(path).open("rb") as file:
            mode = stat.S_IMODE(Path(f"/proc/self/fd/{file.fileno()}").stat().st_mode)
            key = bytearray(file.read(33))
    except OSError as e:
        raise ConfigError("broker.master-key", f"{path}: {e.strerror}", hint=hint) from e
    if mode & 0o077:
        raise ConfigError("broker.master-key", f"{path} has mode {mode:04o}", hint=hint)
    if len(key) != 32:
        raise ConfigError("broker.master-key", f"{path} does not have 32 bytes", hint=hint)
    return Secret(key)


class Store:
    """Resources, each sealed with AES-256-GCM; the AAD names kind, path and version, so none can stand in for another.

    The master key is never in the database.
    """

    def __init__(self, database: Database, master_key: Secret) -> None:
        self._database = database
        with master_key as key:
            self._aead = AESGCM(bytes(key))

    def put(self, path: str, value: bytes) -> int:
        """Seal a new version of a resource; the version's number. Raises ConfigError `broker.resource-size`."""
        if not 1 <= len(value) <= MAX_RESOURCE:
            raise ConfigError(
                "broker.resource-size", f"{len(value)} bytes", hint=f"a resource has 1 to {MAX_RESOURCE} bytes"
            )
        with self._database.write() as db:
            row = db.execute(
                "INSERT INTO version VALUES (?, 1) ON CONFLICT (path) DO UPDATE SET last = last + 1 RETURNING last",
                (path,),
            ).fetchone()
            version, nonce = int(row[0]), urandom(_NONCE)
            sealed = nonce + self._aead.encrypt(nonce, value, _bound(path, version))
            db.execute("INSERT OR REPLACE INTO resource VALUES (?, ?, ?, ?)", (path, version, sealed, int(time.time())))
        return version

    def get(self, path: str) -> Secret | None:
        """The newest version, or None. Raises ConfigError `broker.sealed` if it does not authenticate."""
        with self._database.read() as db:
            row = db.execute("SELECT version, sealed FROM resource WHERE path = ?", (path,)).fetchone()
        if row is None:
            return None
        version, sealed = int(row[0]), bytes(row[1])
        plain = bytearray(max(len(sealed) - _NONCE - 16, 0))
        try:
            self._aead.decrypt_into(sealed[:_NONCE], sealed[_NONCE:], _bound(path, version), plain)
        except (InvalidTag, ValueError) as e:
            raise ConfigError(
                "broker.sealed", f"{path} does not authenticate", hint="restore the database, or its own master key"
            ) from e
        return Secret(plain)

    def delete(self, path: str) -> bool:
        with self._database.write() as db:
            return db.execute("DELETE FROM resource WHERE path = ?", (path,)).rowcount == 1


def _bound(path: str, version: int) -> bytes:
    return f"antechamber/resource\0{path}\0{version}".encode()
