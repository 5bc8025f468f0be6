"""What was released, to whom and when: the limits of a rule, decided in the database. A restart resets nothing."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from antechamber.broker.rules import KEPT_S, GuestLimit, ResourceRule
from antechamber.broker.sessions import SPENT_S
from antechamber.broker.store import Database
from antechamber.errors import BrokerDenied

_LATER = "boot again when there is room, or change the rule at the broker"


class History:
    """Releases and who holds them. A guest is one boot: the content of its `tls` event.

    Time never goes back here: whatever the clock says, a decision is not earlier than the latest one on record.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def releasing(self, path: str, guest: str, rule: ResourceRule, now: int) -> Iterator[sqlite3.Connection]:
        """Record a release that the rule has room for, and do the body, in one transaction: both or neither.

        Of requests at once each sees the one before. Raises BrokerDenied `rules.until`, `rules.releases`,
        `rules.at-once`, `session.spent`.
        """
        with self._database.write() as db:
            now = _advance(db, now)
            _require_room(db, path, guest, rule, now)
            _forget(db, path, now)
            db.execute(
                "INSERT INTO release (path, guest, phase, time) VALUES (?, ?, ?, ?)", (path, guest, rule.phase, now)
            )
            db.execute(
                "INSERT INTO holder VALUES (?, ?, ?, 0) "
                "ON CONFLICT (path, guest) DO UPDATE SET released = excluded.released",
                (path, guest, now),
            )
            yield db

    def lease(self, guest: str, resources: Mapping[str, ResourceRule], now: int) -> None:
        """Record that a guest is live. One that had lapsed needs a place again. Raises BrokerDenied `rules.at-once`."""
        with self._database.write() as db:
            now = _advance(db, now)
            _require_places(db, guest, resources, now)
            db.execute("UPDATE holder SET leased = ? WHERE guest = ?", (now, guest))

    def spent(self) -> dict[str, int]:
        """Guests that received a resource of the boot phase, and when: those that sessions still remember."""
        with self._database.read() as db:
            query = "SELECT guest, max(time) FROM release WHERE phase = 'boot' AND time > ? GROUP BY guest"
            rows = db.execute(query, (_latest(db) - SPENT_S,)).fetchall()
        return {str(guest): int(time) for guest, time in rows}

    # -- what would be decided, without deciding it

    def require_release(self, path: str, guest: str, rule: ResourceRule, now: int) -> None:
        """Raises as `releasing` would now; records nothing."""
        with self._database.read() as db:
            _require_room(db, path, guest, rule, max(now, _latest(db)))

    def require_lease(self, guest: str, resources: Mapping[str, ResourceRule], now: int) -> None:
        """Raises as `lease` would now; records nothing."""
        with self._database.read() as db:
            _require_places(db, guest, resources, max(now, _latest(db)))


def _latest(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT time FROM moment").fetchone()
    return 0 if row is None else int(row[0])


def _advance(db: sqlite3.Connection, now: int) -> int:
    later = max(now, _latest(db))
    db.execute("INSERT INTO moment VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET time = excluded.time", (later,))
    return later


def _require_room(db: sqlite3.Connection, path: str, guest: str, rule: ResourceRule, now: int) -> None:
    if (
        rule.phase == "boot"
        and db.execute("SELECT 1 FROM release WHERE guest = ? AND phase = 'boot'", (guest,)).fetchone()
    ):
        raise BrokerDenied("session.spent", "this boot has released a key", hint="boot the guest again")
    ends = rule.ends()
    if ends is not None and now >= ends:
        raise BrokerDenied(
            "rules.until", f"{path} was released until {rule.until}", hint="change the rule at the broker"
        )
    if rule.releases != "unlimited":
        since = now - rule.releases.per_s
        seen = _count(db, "SELECT count(*) FROM release WHERE path = ? AND time > ?", path, since)
        if seen >= rule.releases.max:
            detail = f"{path} was released {seen} times in {rule.releases.per_s} s, at most {rule.releases.max}"
            raise BrokerDenied("rules.releases", detail, hint=_LATER)
    if rule.at_once != "unlimited":
        _require_place(db, path, guest, rule.at_once, now)


def _require_places(db: sqlite3.Connection, guest: str, resources: Mapping[str, ResourceRule], now: int) -> None:
    for (path,) in db.execute("SELECT path FROM holder WHERE guest = ?", (guest,)).fetchall():
        rule = resources.get(path)
        if rule is not None and rule.at_once != "unlimited":
            _require_place(db, path, guest, rule.at_once, now)


def _require_place(db: sqlite3.Connection, path: str, guest: str, limit: GuestLimit, now: int) -> None:
    """A guest that is live has its place; any other needs one that is free."""
    maybe = db.execute(
        "SELECT guest, released, leased FROM holder WHERE path = ? AND (leased > ? OR released > ?)",
        (path, now - limit.lease_s, now - limit.boot_s),
    )
    live = {
        str(holder)
        for holder, released, leased in maybe
        if now < leased + limit.lease_s or (leased < released and now < released + limit.boot_s)
    }
    if guest not in live and len(live) >= limit.max:
        raise BrokerDenied("rules.at-once", f"{len(live)} live guests have {path}, at most {limit.max}", hint=_LATER)


def _forget(db: sqlite3.Connection, path: str, now: int) -> None:
    """What no limit can still count."""
    db.execute("DELETE FROM release WHERE path = ? AND time <= ?", (path, now - KEPT_S))
    db.execute(
        "DELETE FROM holder WHERE path = ? AND released <= ? AND leased <= ?", (path, now - KEPT_S, now - KEPT_S)
    )


def _count(db: sqlite3.Connection, query: str, *arguments: str | int) -> int:
    return int(db.execute(query, arguments).fetchone()[0])
