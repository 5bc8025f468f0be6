"""The newest /attest bodies that were refused, for `antechamber policy explain`. They hold no secrets."""

import contextlib
import os
import threading
from pathlib import Path

FOLDER = "refused"  # in the broker's directory, mode 0700
MAX_BYTES = 64 << 20  # of all files


class RefusedBodies:
    """A ring of at most `keep` files, mode 0600. Anyone may be refused: a flood pushes out what others left."""

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory, self._keep = directory / FOLDER, keep
        self._lock = threading.Lock()

    def add(self, body: bytes, session: str, now: int) -> str:
        """Keep it; its name relative to the broker's directory, or "". `session` is the audit's digest of the id.

        A session has one file, its newest. Raises OSError.
        """
        if not self._keep:
            return ""
        with self._lock:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            for older in self._directory.glob(f"*-{session}.json"):
                older.unlink(missing_ok=True)
            path = self._directory / f"{now:010d}-{session}.json"
            _write(path, body)
            self._prune()
        return f"{FOLDER}/{path.name}"

    def _prune(self) -> None:
        files = sorted(self._directory.glob("*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        left = MAX_BYTES
        for index, file in enumerate(files):
            left -= file.stat().st_size
            if index >= self._keep or left < 0:
                file.unlink(missing_ok=True)


def _write(path: Path, body: bytes) -> None:
    draft = path.with_suffix(".part")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(body)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
