"""The trees behind the FUSE views keep the kernel's rules, as measured on Linux 6.12 and 7.3."""

import errno
import os

import pytest

from antechamber.simulator.intel import IntelPki
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.machine import Machine
from antechamber.simulator.nvidia import NvidiaPki
from antechamber.simulator.protocol import in_process
from antechamber.simulator.tsmfuse import MeasurementTree, ReportTree


class Report:
    """A `report/` with one entry, and files used as the kernel's are."""

    def __init__(self, knobs: Knobs | None = None) -> None:
        self.machine = Machine(IntelPki(seed=bytes(32)), NvidiaPki(seed=bytes(32)), knobs)
        self.tree = ReportTree(in_process(self.machine))
        self.tree.mkdir("/x")

    def read(self, name: str) -> bytes:
        file = self.tree.open(f"/x/{name}", os.O_RDONLY)
        try:
            return self.tree.read(file)
        finally:
            self.tree.close(file)

    def write(self, *chunks: bytes) -> None:
        file, offset = self.tree.open("/x/inblob", os.O_WRONLY), 0
        try:
            for chunk in chunks:
                offset += self.tree.write(file, chunk, offset)
        finally:
            self.tree.close(file)


def refused(number: int) -> "pytest.RaisesExc[OSError]":
    return pytest.RaisesExc(OSError, check=lambda e: e.errno == number)


def test_report_quotes_once_per_inblob() -> None:
    report = Report()
    report.write(bytes(64))
    assert report.read("outblob") == report.read("outblob")
    assert (report.read("generation"), report.machine.stats.quotes) == (b"1\n", 1)
    report.write(b"\1" * 64)
    assert report.read("outblob")[568:632] == b"\1" * 64


def test_report_commits_at_close_when_written_in_two() -> None:
    report = Report()
    report.write(bytes(32), b"\1" * 32)
    assert report.read("generation") == b"1\n"
    assert report.read("outblob")[568:632] == bytes(32) + b"\1" * 32


def test_report_keeps_what_an_open_file_shows_when_inblob_changes() -> None:
    report = Report()
    report.write(bytes(64))
    held = report.tree.open("/x/outblob", os.O_RDONLY)
    before = report.tree.read(held)
    report.write(b"\1" * 64)
    assert report.tree.read(held) == before != report.read("outblob")


def test_report_refuses_65_bytes_and_counts_them_even_so() -> None:
    report = Report()
    with refused(errno.EFBIG):
        report.write(bytes(65))
    assert report.read("generation") == b"1\n"


@pytest.mark.parametrize("inblob", [None, bytes(32)])
def test_report_has_no_quote_when_inblob_is_not_64_bytes(inblob: bytes | None) -> None:
    report = Report()
    if inblob:
        report.write(inblob)
    with refused(errno.EINVAL):
        report.read("outblob")


def test_report_passes_on_the_errno_and_asks_again() -> None:
    report = Report(Knobs(quote_errno=errno.EBUSY))
    report.write(bytes(64))
    for _ in range(2):
        with refused(errno.EBUSY):
            report.read("outblob")
    assert report.machine.stats.quotes == 2


@pytest.mark.parametrize(
    ("path", "flags"), [("/x/inblob", os.O_RDONLY), ("/x/provider", os.O_WRONLY), ("/x/outblob", os.O_RDWR)]
)
def test_report_refuses_the_wrong_direction_also_to_root(path: str, flags: int) -> None:
    with refused(errno.EACCES):
        Report().tree.open(path, flags)


def test_report_keeps_directories_as_configfs() -> None:
    tree = Report().tree
    for name, number in (("/x", errno.EEXIST), ("/x/y", errno.EPERM)):
        with refused(number):
            tree.mkdir(name)
    with refused(errno.ENOENT):
        tree.parts("/x/auxblob")
    tree.rmdir("/x")
    with refused(errno.ENOENT):
        tree.parts("/x")


def test_measurements_extend_by_48_bytes_at_0_only() -> None:
    machine = Report().machine
    tree = MeasurementTree(in_process(machine))
    assert tree.write("rtmr3:sha384", b"\1" * 48, 0) == 48
    assert tree.read("rtmr3:sha384") == machine.read("rtmr3") != bytes(48)
    assert (tree.read("mrowner"), len(tree.read("mrtd:sha384"))) == (bytes(48), 48)
    for data, offset in ((bytes(32), 0), (bytes(49), 0), (bytes(48), 1)):
        with refused(errno.EINVAL):
            tree.write("rtmr3:sha384", data, offset)
    with refused(errno.EACCES):
        tree.write("mrtd:sha384", bytes(48), 0)
