import errno
import os
import time
from pathlib import Path

import pytest
from fake_tsm import FakeTsm, tdx_quote

from antechamber.errors import HardwareUnavailable
from antechamber.evidence.tdx import Quote
from antechamber.hardware.tsm import ConfigfsTsm, KernelEntry, kernel_entry

REPORT_DATA = bytes(range(64))


def tsm(root: Path, kernel: FakeTsm, deadline_s: float = 5.0) -> ConfigfsTsm:
    return ConfigfsTsm(root, entry=kernel.entry, deadline_s=deadline_s)


def refusal(root: Path, kernel: FakeTsm, deadline_s: float = 5.0) -> HardwareUnavailable:
    with pytest.raises(HardwareUnavailable) as refused:
        tsm(root, kernel, deadline_s).quote(REPORT_DATA)
    assert os.listdir(root) == []  # whatever happened, our entry is gone
    return refused.value


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("padding", [0, 3000])
def test_tsm_quotes_what_was_written(tmp_path: Path, version: int, padding: int) -> None:
    quote = tsm(tmp_path, FakeTsm(version=version, padding=padding)).quote(REPORT_DATA)
    assert quote == tdx_quote(REPORT_DATA, version=version) + bytes(padding)
    assert Quote.parse(quote).body.report_data == REPORT_DATA
    assert os.listdir(tmp_path) == []


def test_tsm_quotes_again(tmp_path: Path) -> None:
    device = tsm(tmp_path, FakeTsm())
    for i in range(3):
        assert Quote.parse(device.quote(bytes([i]) * 64)).body.report_data == bytes([i]) * 64


def test_tsm_names_its_entry_after_the_process(tmp_path: Path) -> None:
    with pytest.raises(HardwareUnavailable) as refused:
        ConfigfsTsm(tmp_path / "missing", entry=kernel_entry).quote(REPORT_DATA)
    assert f"antechamber-{os.getpid()}-" in refused.value.detail


@pytest.mark.parametrize("size", [0, 48, 63, 65])
def test_tsm_refuses_reportdata_of_another_size(tmp_path: Path, size: int) -> None:
    with pytest.raises(HardwareUnavailable) as refused:
        tsm(tmp_path, FakeTsm()).quote(bytes(size))
    assert refused.value.code == "tsm.report-data"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ETIMEDOUT, "tsm.timeout"),
        (errno.EINTR, "tsm.timeout"),
        (errno.EIO, "tsm.io"),
        (errno.EFBIG, "tsm.io"),
        (errno.EINVAL, "tsm.io"),
        (errno.ENXIO, "tsm.provider"),
    ],
)
def test_tsm_translates_what_the_kernel_says(tmp_path: Path, number: int, code: str) -> None:
    refused = refusal(tmp_path, FakeTsm(outblob_errors=(number,)))
    assert refused.code == code
    assert errno.errorcode[number] in refused.detail


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOENT, "tsm.absent"), (errno.ENXIO, "tsm.provider"), (errno.EACCES, "tsm.io"), (errno.EEXIST, "tsm.io")],
)
def test_tsm_translates_what_mkdir_says(tmp_path: Path, number: int, code: str) -> None:
    assert refusal(tmp_path, FakeTsm(mkdir_error=number)).code == code


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EAGAIN])
def test_tsm_waits_while_the_host_is_busy(tmp_path: Path, number: int) -> None:
    assert tsm(tmp_path, FakeTsm(outblob_errors=(number, number))).quote(REPORT_DATA)


def test_tsm_refuses_when_the_host_stays_busy(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert refusal(tmp_path, FakeTsm(outblob_errors=(errno.EBUSY,) * 100), 0.5).code == "tsm.busy"
    assert time.monotonic() - begin < 5


def test_tsm_refuses_another_provider(tmp_path: Path) -> None:
    assert refusal(tmp_path, FakeTsm(provider=b"sev_guest\n")).code == "tsm.provider"


def test_kernel_entry_is_made_and_removed(tmp_path: Path) -> None:
    with kernel_entry(tmp_path / "e") as entry:
        assert (tmp_path / "e").is_dir()
        with pytest.raises(FileNotFoundError):
            entry.read("provider")
    assert not (tmp_path / "e").exists()


def test_kernel_entry_reads_and_writes_whole_attributes(tmp_path: Path) -> None:
    blob = os.urandom(70_000)
    (tmp_path / "outblob").write_bytes(blob)
    (tmp_path / "inblob").touch()
    entry = KernelEntry(tmp_path)
    entry.write("inblob", REPORT_DATA)
    assert (tmp_path / "inblob").read_bytes() == REPORT_DATA
    assert entry.read("outblob") == blob


def test_kernel_entry_refuses_more_than_the_kernel_has(tmp_path: Path) -> None:
    (tmp_path / "outblob").write_bytes(bytes((128 << 10) + 1))
    with pytest.raises(OSError) as refused:
        KernelEntry(tmp_path).read("outblob")
    assert refused.value.errno == errno.EFBIG
