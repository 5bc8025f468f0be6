"""Collateral that the broker keeps: files of a directory, read again when they change."""

import logging
import threading
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from antechamber import log
from antechamber.errors import AgentError, MalformedEvidence
from antechamber.evidence.collateral import MAX_SETS, Collateral, TdxCollateral, seal_collateral


class CollateralSets:
    """`*.json` in dcap-qvl's shape. A file that no longer parses, or is gone, goes on with its last good set.

    Whoever rewrites a file must end no guest that attests meanwhile.
    """

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._seen: tuple[tuple[str, int, int, int], ...] | None = None
        self._good: dict[str, TdxCollateral] = {}  # of each file name
        self._sets: tuple[TdxCollateral, ...] = ()
        self._lock = threading.Lock()

    def current(self, now: int) -> Collateral:
        """For the broker's own verification, at its own clock."""
        return Collateral(now, b"", self._load())

    def _load(self) -> tuple[TdxCollateral, ...]:
        with self._lock:
            files = sorted(self._directory.glob("*.json"))
            seen = tuple(filter(None, map(_state, files)))
            if seen != self._seen:
                self._sets, self._seen = self._parse(files), seen
            return self._sets

    def _parse(self, files: list[Path]) -> tuple[TdxCollateral, ...]:
        there: dict[str, TdxCollateral] = {}
        for file in files:
            try:
                there[file.name] = TdxCollateral.parse(file.read_bytes())
            except AgentError as e:
                log.failure(e)
            except OSError as e:
                log.event("collateral.unread", level=logging.WARNING, file=file.name, error=type(e).__name__)
        kept = {name: one for name, one in self._good.items() if name not in there}
        self._good = there | kept
        newest: dict[str, TdxCollateral] = {}
        for one in self._good.values():
            other = newest.get(one.fmspc)
            if other is None or _age(one) > _age(other):
                newest[one.fmspc] = one
        log.event("collateral.loaded", sets=len(newest), fmspc=" ".join(newest), kept=" ".join(kept))
        return tuple(newest.values())[:MAX_SETS]


class CollateralFiles(CollateralSets):
    """What the broker hands out of them, with its signature."""

    def __init__(self, directory: str, key: Ed25519PrivateKey) -> None:
        super().__init__(directory)
        self._key = key

    def sealed(self, nonce: str, now: int) -> bytes:
        """The signed envelope over a nonce of 64 lower-case hex digits. Raises MalformedEvidence `collateral.nonce`."""
        if len(nonce) != 64 or set(nonce) - set("0123456789abcdef"):
            raise MalformedEvidence("collateral.nonce", "not 64 lower-case hex digits", hint="?nonce=<32 bytes of hex>")
        return seal_collateral(self._load(), time=now, nonce=bytes.fromhex(nonce), key=self._key)


def _state(file: Path) -> tuple[str, int, int, int] | None:
    """What changes with its content, a rename onto it included; None if it is gone."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return file.name, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _age(one: TdxCollateral) -> tuple[int, int]:
    return one.tcb_evaluation_data_number, one.issue_date
