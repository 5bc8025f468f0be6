"""What a host, or another process in the guest, may do to a quote on its way; each is refused by its own code."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_tsm import FakeTsm, tdx_quote

from antechamber.errors import HardwareUnavailable
from antechamber.hardware.tsm import ConfigfsTsm

REPORT_DATA = bytes(range(64))


def refusal(root: Path, kernel: FakeTsm, deadline_s: float = 5.0) -> str:
    with pytest.raises(HardwareUnavailable) as refused:
        ConfigfsTsm(root, entry=kernel.entry, deadline_s=deadline_s).quote(REPORT_DATA)
    return refused.value.code


@pytest.mark.parametrize("writes", [1, 2])
def test_rival_writer_is_refused(tmp_path: Path, writes: int) -> None:
    assert refusal(tmp_path, FakeTsm(rival_writes=writes)) == "tsm.race"


def test_write_that_the_kernel_dropped_is_refused(tmp_path: Path) -> None:
    """configfs commits at close and tells nobody: an older inblob would be quoted."""
    assert refusal(tmp_path, FakeTsm(lost_write=True)) == "tsm.race"


@pytest.mark.parametrize("version", [4, 5])
def test_quote_over_other_reportdata_is_refused(tmp_path: Path, version: int) -> None:
    assert refusal(tmp_path, FakeTsm(outblob=tdx_quote(bytes(64), version=version))) == "tsm.report-data"


def test_reportdata_elsewhere_in_the_quote_is_refused(tmp_path: Path) -> None:
    quote = bytearray(tdx_quote(bytes(64)))
    quote[48 + 184 : 48 + 248] = REPORT_DATA
    assert refusal(tmp_path, FakeTsm(outblob=bytes(quote))) == "tsm.report-data"


def test_empty_quote_is_refused(tmp_path: Path) -> None:
    """Older kernels report success where the quote generation service failed."""
    assert refusal(tmp_path, FakeTsm(outblob=b"")) == "tsm.empty"


@pytest.mark.parametrize(
    "blob",
    [bytes(8000), b"\0", REPORT_DATA, tdx_quote(REPORT_DATA)[:-1], tdx_quote(REPORT_DATA) + b"\1", b"\xff" * 5000],
    ids=["zeros", "one byte", "echo", "cut", "tail", "ones"],
)
def test_garbage_for_a_quote_is_refused(tmp_path: Path, blob: bytes) -> None:
    assert refusal(tmp_path, FakeTsm(outblob=blob)) == "tsm.quote"


def test_quote_of_another_tee_is_refused(tmp_path: Path) -> None:
    quote = bytearray(tdx_quote(REPORT_DATA))
    quote[4:8] = bytes(4)  # SGX
    assert refusal(tmp_path, FakeTsm(outblob=bytes(quote))) == "tsm.quote"


def test_host_that_never_answers_is_killed_and_cleaned_up(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert refusal(tmp_path, FakeTsm(hang_s=60), 0.3) == "tsm.timeout"
    assert time.monotonic() - begin < 10
    assert os.listdir(tmp_path) == []


def test_host_that_interrupts_for_ever_is_killed(tmp_path: Path) -> None:
    """Python repeats a read that EINTR broke off, so no loop of ours could end it."""

    class Endless(FakeTsm):
        def _outblob(self) -> bytes:
            while True:
                pass

    assert refusal(tmp_path, Endless(), 0.3) == "tsm.timeout"
    assert os.listdir(tmp_path) == []


def test_host_that_stays_busy_does_not_hold_the_boot(tmp_path: Path) -> None:
    assert refusal(tmp_path, FakeTsm(outblob_errors=(errno.EBUSY,) * 1000), 0.3) == "tsm.busy"


def test_stale_entries_of_ours_are_removed_and_others_kept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ours = [tmp_path / f"antechamber-{pid}-00" for pid in (gone.pid, os.getpid())]
    others = [tmp_path / name for name in ("antechamber-1-00", "antechamber-x", "cloud-agent")]
    for path in (*ours, *others):
        path.mkdir()
    ConfigfsTsm(tmp_path, entry=FakeTsm().entry).quote(REPORT_DATA)
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_entry_that_the_kernel_held_is_removed_by_the_next_quote(tmp_path: Path) -> None:
    """A read that not even SIGKILL ends keeps rmdir waiting, past the refusal."""

    class Stuck(FakeTsm):
        def _outblob(self) -> bytes:
            if self.hang_s:
                (next(tmp_path.iterdir()) / "held").touch()
            return super()._outblob()

    kernel = Stuck()
    device = ConfigfsTsm(tmp_path, entry=kernel.entry, deadline_s=0.5)
    device.quote(REPORT_DATA)  # what earlier agents left is removed now, and only now
    kernel.hang_s = 60
    with pytest.raises(HardwareUnavailable) as refused:
        device.quote(REPORT_DATA)
    assert refused.value.code == "tsm.timeout"
    (entry,) = tmp_path.iterdir()
    (entry / "held").unlink()
    kernel.hang_s = 0
    device.quote(REPORT_DATA)
    assert list(tmp_path.iterdir()) == []


def test_threads_never_share_an_entry(tmp_path: Path) -> None:
    """A watch and a caller's nonce at once: each gets a quote over its own REPORTDATA."""
    device = ConfigfsTsm(tmp_path, entry=FakeTsm(hang_s=0.02).entry)
    got: dict[int, bytes] = {}

    def quote(i: int) -> None:
        got[i] = device.quote(bytes([i]) * 64)

    threads = [threading.Thread(target=quote, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {i: tdx_quote(bytes([i]) * 64) for i in range(4)}
