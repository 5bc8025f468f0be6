"""Transactions of many threads on one connection: those that come at once go to the disk in one commit.

A commit waits for the disk, and it is most of what a release waits for; each still returns only once its own is there.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MAX_BATCH = 64  # in one commit


class _Batch:
    """What is committed together."""

    def __init__(self) -> None:
        self.size = 0
        self.error: sqlite3.Error | None = None
        self.over = threading.Event()


class Commits:
    """One connection, in autocommit mode, that nothing else writes with."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._coming = 0  # threads that wait for their turn: the last one commits
        self._batch: _Batch | None = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the body or nothing of it, on the disk when this returns. Bodies take turns, and each sees the last.

        A body that raises leaves the others of its batch as they are; a commit that fails fails all of them.
        Raises sqlite3.Error.
        """
        with self._count():
            self._turn.acquire()
        try:
            batch = self._batch = self._batch or self._begin()
            try:
                yield from self._body(batch)
            finally:
                if self._coming == 0 or batch.size >= MAX_BATCH:
                    self._end(batch)
        finally:
            self._turn.release()
        batch.over.wait()
        if batch.error is not None:
            raise sqlite3.OperationalError(f"not committed: {batch.error}") from batch.error

    @contextmanager
    def _count(self) -> Iterator[None]:
        with self._counting:
            self._coming += 1
        try:
            yield
        finally:
            with self._counting:
                self._coming -= 1

    def _begin(self) -> _Batch:
        self._connection.execute("BEGIN IMMEDIATE")
        return _Batch()

    def _body(self, batch: _Batch) -> Iterator[sqlite3.Connection]:
        self._connection.execute("SAVEPOINT one")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK TO one")
            raise
        finally:
            self._connection.execute("RELEASE one")
        batch.size += 1

    def _end(self, batch: _Batch) -> None:
        self._batch = None
        try:
            self._connection.execute("COMMIT" if batch.size else "ROLLBACK")
        except sqlite3.Error as e:
            batch.error = e
            with suppress(sqlite3.Error):  # SQLite has rolled back, or does it now
                self._connection.execute("ROLLBACK")
        batch.over.set()
