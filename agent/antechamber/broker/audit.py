"""The audit trail: one record for every decision, on the disk before its answer leaves.

What the broker decides about guests that a policy vouches for, and for its owner, is append-only. Of what it turns away
from strangers, and of what one guest asks for over and over, only the newest are kept: nobody fills the disk by asking.
"""

import hashlib
import json
import sqlite3
import threading
from collections import Counter
from dataclasses import dataclass, fields
from typing import Literal

from antechamber.broker.store import Database

Decision = Literal["attested", "released", "certified", "leased", "stored", "deleted", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One decision. Digests and names only: no secret, token or cookie."""

    time: int  # seconds since the epoch
    session: str  # first 32 hex digits of the SHA-256 of the session id, or ""
    peer: str  # address of the other end of the connection
    resource: str  # path, or what was asked for
    decision: Decision
    code: str = ""
    detail: str = ""
    evidence: str = ""  # JSON: digests of what was appraised
    policy: str = ""  # sha256:<hex> of the rules file


_LAST = "(SELECT coalesce(max(id), 0) FROM audit)"
_COLUMNS = [f.name for f in fields(Record)]
MAX_STRANGERS = 100_000  # records; each at most about 2 KiB
MAX_PER_GUEST = 30  # append-only records a minute, of one guest and one kind of decision
_MAX_FIELD, _MAX_STRANGERS_FIELD = 2000, 400  # characters


class Audit:
    """Append-only, but for strangers: the database refuses to change or delete a record."""

    def __init__(self, database: Database, strangers: int = MAX_STRANGERS) -> None:
        self._database, self._strangers = database, strangers
        self._minute, self._seen = 0, Counter[tuple[str, Decision]]()
        self._lock = threading.Lock()

    def of_guest(self, guest: str, record: Record) -> None:
        """Append a record of a known guest; what is more than `MAX_PER_GUEST` goes where strangers' go.

        A guest that was broken into after its boot is still known. Raises sqlite3.Error.
        """
        with self._lock:
            if (minute := record.time // 60) != self._minute:
                self._minute = minute
                self._seen.clear()
            self._seen[guest, record.decision] += 1
            often = self._seen[guest, record.decision] > MAX_PER_GUEST
        if often:
            self.note(record)
        else:
            self.add(record)

    def add(self, record: Record) -> None:
        """Returns once the record is on the disk. Raises sqlite3.Error, and then nothing may be released."""
        with self._database.write() as db:
            self.insert(db, record)

    @staticmethod
    def insert(db: sqlite3.Connection, record: Record) -> None:
        """As part of a transaction: on the disk when that is. Raises sqlite3.Error."""
        marks = ", ".join("?" for _ in _COLUMNS)
        values = [_clean(getattr(record, name), _MAX_FIELD) for name in _COLUMNS]
        db.execute(f"INSERT INTO audit ({', '.join(_COLUMNS)}) VALUES ({marks})", values)  # noqa: S608  # own names

    def note(self, record: Record) -> None:
        """Keep the record of a stranger until enough others follow. Raises sqlite3.Error."""
        marks = ", ".join("?" for _ in _COLUMNS)
        values = [_clean(getattr(record, name), _MAX_STRANGERS_FIELD) for name in _COLUMNS]
        insert = f"INSERT INTO stranger (after, {', '.join(_COLUMNS)}) VALUES ({_LAST}, {marks})"  # noqa: S608
        with self._database.write() as db:
            last = db.execute(insert, values).lastrowid or 0
            db.execute("DELETE FROM stranger WHERE id <= ?", (last - self._strangers,))

    def records(self, limit: int = 1000) -> tuple[Record, ...]:
        """The newest, oldest first."""
        names = ", ".join(_COLUMNS)
        both = f"SELECT id AS a, 0 AS b, {names} FROM audit UNION ALL SELECT after, id, {names} FROM stranger"  # noqa: S608
        query = f"SELECT {names} FROM ({both}) ORDER BY a DESC, b DESC LIMIT ?"  # noqa: S608  # own names
        with self._database.read() as db:
            rows = db.execute(query, (limit,)).fetchall()
        return tuple(Record(**dict(zip(_COLUMNS, row, strict=True))) for row in reversed(rows))


def _clean(value: str | int, limit: int) -> str | int:
    return value if isinstance(value, int) else value.encode("utf-8", "replace").decode()[:limit]


def session_digest(session_id: str) -> str:
    return hashlib.sha256(session_id.encode()).hexdigest()[:32]


def evidence_digests(quote: bytes, event_log: bytes | None, additional: str) -> str:
    """JSON with the SHA-256 of each part of the Evidence."""
    parts = {"quote": quote, "event_log": event_log or b"", "additional": additional.encode()}
    return json.dumps({name: hashlib.sha256(part).hexdigest() for name, part in parts.items()})
