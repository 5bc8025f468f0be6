import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from antechamber.broker.commits import MAX_BATCH, Commits

SCHEMA = """
PRAGMA journal_mode=WAL; PRAGMA foreign_keys=ON;
CREATE TABLE one (id INTEGER PRIMARY KEY, other INTEGER REFERENCES one(id) DEFERRABLE INITIALLY DEFERRED);
"""
MISSING = 999


class Rig:
    """A database, and which statements reach it."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen = path, list[str]()
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        connection.executescript(SCHEMA)
        connection.set_trace_callback(self.seen.append)
        self.commits = Commits(connection)

    def add(self, number: int, other: int | None = None, inside: Callable[[], object] = int) -> None:
        with self.commits.transaction() as db:
            db.execute("INSERT INTO one VALUES (?, ?)", (number, other))
            inside()

    def on_disk(self) -> set[int]:
        with sqlite3.connect(self.path) as db:
            return {int(row[0]) for row in db.execute("SELECT id FROM one")}

    def together(self, *transactions: Callable[[], object]) -> list[Future[object]]:
        """All in one batch: the first waits in its body until the others wait for their turn."""
        pool, inside, go = ThreadPoolExecutor(), threading.Event(), threading.Event()

        def wait() -> None:
            inside.set()
            go.wait(10)

        first: Future[object] = pool.submit(lambda: (self.add(0, inside=wait), self.on_disk())[1])  # type: ignore[func-returns-value]
        assert inside.wait(10)
        others = []
        for count, transaction in enumerate(transactions, 1):  # one at a time, so that they stand in this order
            others.append(pool.submit(transaction))
            deadline = time.monotonic() + 10
            while self.commits._coming < count and time.monotonic() < deadline:
                time.sleep(0.001)
        go.set()
        pool.shutdown()
        return [first, *others]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "db")


def test_transaction_is_on_the_disk_when_it_returns(rig: Rig) -> None:
    for number in range(3):
        rig.add(number)
        assert rig.on_disk() == set(range(number + 1))
    assert rig.seen.count("COMMIT") == 3


def test_transactions_that_come_at_once_are_one_commit(rig: Rig) -> None:
    done = rig.together(*(lambda n=n: rig.add(n) for n in range(1, 4)))  # type: ignore[misc]
    assert [f.exception() for f in done] == [None] * 4
    assert rig.on_disk() == {0, 1, 2, 3}
    assert rig.seen.count("COMMIT") == 1


def test_transaction_returns_only_when_the_commit_that_has_it_is_done(rig: Rig) -> None:
    early: list[bool] = []
    first, _ = rig.together(lambda: rig.add(1, inside=lambda: (time.sleep(0.2), early.append(rig.on_disk() == set()))))
    assert first.result() == {0, 1}  # what the first one finds as soon as it returns
    assert early == [True]
    assert rig.on_disk() == {0, 1}


def test_body_that_raises_leaves_nothing_of_itself_and_all_of_the_others(rig: Rig) -> None:
    def fail() -> None:
        raise KeyError

    for last in (False, True):  # whoever comes last commits for the rest, also if its own body fails
        base = 10 * (1 + last)
        others = [lambda: rig.add(base, inside=fail), lambda: rig.add(base + 1)]  # noqa: B023
        done = rig.together(*(reversed(others) if last else others))
        assert sorted(type(f.exception()).__name__ for f in done) == ["KeyError", "NoneType", "NoneType"]
        assert rig.on_disk() == {0, base + 1}
        with sqlite3.connect(rig.path) as db:
            db.execute("DELETE FROM one")


def test_commit_that_fails_fails_everyone_in_it_and_no_one_after(rig: Rig) -> None:
    done = rig.together(lambda: rig.add(1, other=MISSING), lambda: rig.add(2))
    assert [type(f.exception()) for f in done] == [sqlite3.OperationalError] * 3
    assert rig.on_disk() == set()
    rig.add(3)
    assert rig.on_disk() == {3}


def test_body_that_raises_alone_leaves_the_next_one_free(rig: Rig) -> None:
    rig.add(1)
    with pytest.raises(sqlite3.IntegrityError):
        rig.add(1)
    rig.add(2)
    assert rig.on_disk() == {1, 2}


def test_transactions_of_many_threads_are_all_kept(rig: Rig) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(rig.add, range(400)))
    assert rig.on_disk() == set(range(400))
    assert rig.seen.count("COMMIT") <= 400
    assert MAX_BATCH >= 16
