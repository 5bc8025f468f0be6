"""Progress of long work: a record a second, and the last one."""

import time

from antechamber import log
from antechamber.boot.notify import notify


class Progress:
    """Called with bytes done and bytes in all."""

    def __init__(self, name: str, every_s: float = 1.0) -> None:
        self._name, self._every = name, every_s
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < self._every and done != total:
            return
        self._last = now
        rate = done / max(now - self._start, 1e-6)
        left = round((total - done) / rate) if rate else 0
        log.event("progress", what=self._name, bytes=done, of=total, mb_per_s=round(rate / 1e6, 1), seconds_left=left)
        notify(f"STATUS={self._name}: {done} of {total} bytes, {rate / 1e6:.0f} MB/s, {left} s left")
