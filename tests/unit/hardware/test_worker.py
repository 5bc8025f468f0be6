import os
import time
from pathlib import Path

import pytest

from antechamber.errors import HardwareUnavailable
from antechamber.hardware.worker import within

LATE = HardwareUnavailable("test.late", "late", hint="none")


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_within_returns_what_the_work_returns() -> None:
    big = os.urandom(1 << 18)  # more than a pipe holds
    assert within(5, LATE, lambda: big) == big
    assert within(5, LATE, lambda: b"") == b""


def test_within_passes_the_refusal_on() -> None:
    def refuse() -> bytes:
        raise HardwareUnavailable("test.no", "seen", hint="do")

    with pytest.raises(HardwareUnavailable) as refused:
        within(5, LATE, refuse)
    assert (refused.value.code, refused.value.detail, refused.value.hint) == ("test.no", "seen", "do")


def test_within_kills_at_the_deadline_and_reaps() -> None:
    before, begin = children(), time.monotonic()
    with pytest.raises(HardwareUnavailable) as refused:
        within(0.1, LATE, lambda: time.sleep(60) or b"")
    assert refused.value is LATE
    assert time.monotonic() - begin < 10
    assert children() == before


@pytest.mark.parametrize("failure", [ZeroDivisionError, SystemExit, KeyboardInterrupt, MemoryError])
def test_within_refuses_when_the_work_dies(failure: type[BaseException]) -> None:
    def die() -> bytes:
        raise failure

    with pytest.raises(HardwareUnavailable) as refused:
        within(5, LATE, die)
    assert refused.value.code == "tsm.worker"


def test_within_gives_the_work_no_descriptor_of_the_parent(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("wb") as file:
        held = file.fileno()
        seen = within(5, LATE, lambda: ",".join(os.listdir("/proc/self/fd")).encode())
    assert str(held) not in seen.decode().split(",")


def test_within_leaves_no_descriptor_open() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        within(5, LATE, lambda: b"x")
    assert os.listdir("/proc/self/fd") == before
