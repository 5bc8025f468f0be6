"""TDX quotes through configfs-tsm: one entry a quote, read by a worker that can be killed.

The kernel waits for the host in this read: it may say busy, or never answer; a signal does not end it, since Python
repeats what EINTR broke off. So a forked child does it, and SIGKILL at the deadline ends it.
Source: Linux ABI/testing/configfs-tsm-report; drivers/virt/coco/{guest/report,tdx-guest/tdx-guest}.c.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from antechamber.errors import HardwareUnavailable, MalformedEvidence
from antechamber.evidence.composite import MAX_QUOTE
from antechamber.evidence.tdx import Quote
from antechamber.hardware.worker import within

REPORT_ROOT = Path("/sys/kernel/config/tsm/report")
_PREFIX = "antechamber-"  # of our entries: what else lies there is not ours to touch
_PROVIDER = b"tdx_guest"
_CLEARING_S = 1.0  # rmdir may wait for a lock of the kernel, so it is bounded too
_BUSY = (errno.EBUSY, errno.EAGAIN)  # the host still owns the buffer: ask again
_REFUSALS = {
    errno.EBUSY: ("tsm.busy", "the host is still busy with an earlier quote: try later"),
    errno.EAGAIN: ("tsm.busy", "the host is still busy with an earlier quote: try later"),
    errno.ETIMEDOUT: ("tsm.timeout", "the host's quote generation service does not answer: restart it"),
    errno.EINTR: ("tsm.timeout", "the host's quote generation service does not answer: restart it"),
    errno.ENOENT: ("tsm.absent", "mount configfs and load tdx_guest in the image"),
    errno.ENXIO: ("tsm.provider", "load tdx_guest in the image; this guest may not be a TD"),
}


class ReportEntry(Protocol):
    """One entry of configfs-tsm. Every write is one open, write, close: the kernel commits at close."""

    def read(self, attribute: str) -> bytes: ...

    def write(self, attribute: str, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """ReportEntry over files."""

    path: Path

    def read(self, attribute: str) -> bytes:
        """All of it, at most `MAX_QUOTE`, through one open: reopening `outblob` could show another quote."""
        fd = os.open(self.path / attribute, os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = b""
            # configfs answers EFAULT to a read of no bytes
            while len(raw) <= MAX_QUOTE and (chunk := os.read(fd, MAX_QUOTE + 1 - len(raw))):
                raw += chunk
            if len(raw) > MAX_QUOTE:
                raise OSError(errno.EFBIG, f"more than {MAX_QUOTE} bytes", attribute)
            return raw
        finally:
            os.close(fd)

    def write(self, attribute: str, data: bytes) -> None:
        fd = os.open(self.path / attribute, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if (written := os.write(fd, data)) != len(data):
                raise OSError(errno.EIO, f"took {written} of {len(data)} bytes", attribute)
        finally:
            os.close(fd)


@contextlib.contextmanager
def kernel_entry(path: Path) -> Iterator[ReportEntry]:
    """Make the entry, lend it, remove it."""
    path.mkdir()
    try:
        yield KernelEntry(path)
    finally:
        _remove(path)


class ConfigfsTsm:
    """QuoteSource over configfs-tsm. One quote at a time: the kernel has one buffer."""

    def __init__(
        self,
        root: Path = REPORT_ROOT,
        *,
        entry: Callable[[Path], AbstractContextManager[ReportEntry]] = kernel_entry,
        deadline_s: float = 60.0,
    ) -> None:
        self._root, self._entry, self._deadline_s = root, entry, deadline_s
        self._lock = threading.Lock()
        self._cleared = False

    def quote(self, report_data: bytes) -> bytes:
        """Quote 64 bytes of REPORTDATA, as the kernel delivers it (padding included).

        Raises HardwareUnavailable `tsm.absent`, `tsm.provider`, `tsm.busy`, `tsm.timeout`, `tsm.io`, `tsm.race`,
        `tsm.empty`, `tsm.quote`, `tsm.report-data`, `tsm.worker`.
        """
        if len(report_data) != 64:
            raise HardwareUnavailable("tsm.report-data", f"{len(report_data)} bytes, not 64", hint="pad with zeros")
        with self._lock:
            own = os.getpid()
            path = self._root / f"{_PREFIX}{own}-{os.urandom(8).hex()}"
            until = time.monotonic() + 0.9 * self._deadline_s  # the worker's own limit: its code says more

            def exchange() -> bytes:
                if not self._cleared:
                    _clear(self._root, own)
                return _exchange(self._entry(path), report_data, until)

            try:
                quote = within(self._deadline_s, _late(), exchange)
            except HardwareUnavailable:
                self._cleared = False  # the kernel may hold on to the entry for now: the next quote removes it
                with contextlib.suppress(HardwareUnavailable):  # what a killed worker left
                    within(_CLEARING_S, _late(), lambda: _remove(path))
                raise
            self._cleared = True
        _require_ours(quote, report_data)
        return quote


def _clear(root: Path, own: int) -> None:
    """Remove what processes of ours left that are gone, or were `own` before it re-executed itself.

    While any entry lies there the kernel does not let another provider register.
    """
    with contextlib.suppress(OSError):  # what is wrong with `root` shows when our entry is made
        for path in root.glob(f"{_PREFIX}*"):
            pid = path.name.removeprefix(_PREFIX).partition("-")[0]
            if pid == str(own) or (pid.isdecimal() and not Path("/proc", pid).exists()):
                _remove(path)


def _remove(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        path.rmdir()
    return b""


def _late() -> HardwareUnavailable:
    code, hint = _REFUSALS[errno.ETIMEDOUT]
    return HardwareUnavailable(code, "no answer before the deadline", hint=hint)


def _exchange(entry: AbstractContextManager[ReportEntry], report_data: bytes, until: float) -> bytes:
    """In the worker: errors of the kernel translated once."""
    try:
        with entry as report:
            return _quote(report, report_data, until)
    except OSError as e:
        code, hint = _REFUSALS.get(e.errno or 0, ("tsm.io", "run as root; look at the kernel's and the host's log"))
        seen = f"{errno.errorcode.get(e.errno or 0, 'no errno')}: {e.strerror}" + (
            f", {e.filename}" if e.filename else ""
        )
        raise HardwareUnavailable(code, seen, hint=hint) from e


def _quote(report: ReportEntry, report_data: bytes, until: float) -> bytes:
    if (provider := report.read("provider").strip()) != _PROVIDER:
        seen = f"provider {provider[:32].decode(errors='replace')!r}, not tdx_guest"
        raise HardwareUnavailable("tsm.provider", seen, hint="run in a TD, with tdx_guest loaded")
    before = _generation(report)
    report.write("inblob", report_data)
    quote = _outblob(report, until)
    writes = _generation(report) - before
    if writes != 1:
        raise HardwareUnavailable("tsm.race", f"{writes} writes, not 1", hint="stop the other writer")
    if not quote:
        hint = "the host's quote generation service failed: look at its log"
        raise HardwareUnavailable("tsm.empty", "the quote is empty", hint=hint)
    return quote


def _generation(report: ReportEntry) -> int:
    text = report.read("generation").strip()
    if not text.isdigit():
        raise HardwareUnavailable("tsm.io", f"generation {text[:32]!r}", hint="this kernel's configfs-tsm is unknown")
    return int(text)


def _outblob(report: ReportEntry, until: float) -> bytes:
    """Read once. While the host owns the buffer, wait and ask again: `inblob` stays as it is."""
    pause_s = 0.05
    while True:
        try:
            return report.read("outblob")
        except OSError as e:
            if e.errno not in _BUSY or time.monotonic() + pause_s > until:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 1.0)


def _require_ours(raw: bytes, report_data: bytes) -> None:
    """Older kernels hand out garbage where the host refused: it must be a TDX quote, over what we wrote."""
    try:
        quote = Quote.parse(raw)
    except MalformedEvidence as e:
        hint = "the host's quote generation service failed: look at its log"
        raise HardwareUnavailable("tsm.quote", f"no TDX quote: {e}", hint=hint) from e
    if quote.body.report_data != report_data:
        hint = "another writer, or a host that answers with old quotes: stop it"
        raise HardwareUnavailable("tsm.report-data", "the quote is over other REPORTDATA", hint=hint)
