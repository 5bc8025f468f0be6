import errno
import hashlib
import time
from pathlib import Path

import pytest
from fake_tsm import FakeRegisters

from antechamber.errors import HardwareUnavailable
from antechamber.hardware.measurements import KernelRegisters, SysfsMeasurements

DIGEST = hashlib.sha384(b"event").digest()


def extend_refusal(files: FakeRegisters, digest: bytes = DIGEST) -> str:
    with pytest.raises(HardwareUnavailable) as refused:
        SysfsMeasurements(files).extend_rtmr3(digest)
    return refused.value.code


def test_measurements_extend_rtmr3_only() -> None:
    files = FakeRegisters()
    source = SysfsMeasurements(files)
    source.extend_rtmr3(DIGEST)
    source.extend_rtmr3(DIGEST)
    first = hashlib.sha384(bytes(48) + DIGEST).digest()
    assert source.read("rtmr3") == hashlib.sha384(first + DIGEST).digest()
    assert source.read("rtmr0") == source.read("rtmr2") == source.read("mrtd") == source.read("mrconfigid") == bytes(48)


def test_measurements_refuse_when_another_process_extends() -> None:
    assert extend_refusal(FakeRegisters(rival=bytes(48))) == "rtmr.race"


def test_measurements_refuse_a_kernel_that_did_not_extend() -> None:
    assert extend_refusal(FakeRegisters(deaf=True)) == "rtmr.race"


@pytest.mark.parametrize("size", [0, 32, 47, 49])
def test_measurements_refuse_a_digest_of_another_size(size: int) -> None:
    files = FakeRegisters()
    assert extend_refusal(files, bytes(size)) == "rtmr.size"
    assert files.read("rtmr3:sha384") == bytes(48)


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EIO, "rtmr.io"), (errno.EACCES, "rtmr.io"), (errno.ENXIO, "rtmr.absent")]
)
def test_measurements_translate_what_the_kernel_says(number: int, code: str) -> None:
    assert extend_refusal(FakeRegisters(error=number)) == code


def test_measurements_refuse_a_kernel_that_never_answers() -> None:
    begin = time.monotonic()
    with pytest.raises(HardwareUnavailable) as refused:
        SysfsMeasurements(FakeRegisters(hang_s=60), deadline_s=0.3).extend_rtmr3(DIGEST)
    assert refused.value.code == "rtmr.timeout"
    assert time.monotonic() - begin < 10


def test_measurements_refuse_an_old_kernel(tmp_path: Path) -> None:
    with pytest.raises(HardwareUnavailable) as refused:
        SysfsMeasurements(KernelRegisters(tmp_path / "measurements")).read("rtmr3")
    assert refused.value.code == "rtmr.absent"
    assert "6.16" in refused.value.hint


@pytest.mark.parametrize("size", [0, 47, 49, 4096])
def test_measurements_refuse_a_register_of_another_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "mrtd:sha384").write_bytes(bytes(size))
    with pytest.raises(HardwareUnavailable) as refused:
        SysfsMeasurements(KernelRegisters(tmp_path)).read("mrtd")
    assert refused.value.code == "rtmr.size"


def test_kernel_registers_read_and_write_files(tmp_path: Path) -> None:
    for name in ("mrconfigid", "rtmr3:sha384"):
        (tmp_path / name).write_bytes(name.ljust(48).encode())
    files = KernelRegisters(tmp_path)
    assert SysfsMeasurements(files).read("mrconfigid") == b"mrconfigid".ljust(48)
    files.write("rtmr3:sha384", DIGEST)
    assert (tmp_path / "rtmr3:sha384").read_bytes() == DIGEST


def test_ccel_is_read_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "CCEL"
    assert SysfsMeasurements(ccel=path).ccel() is None
    path.write_bytes(b"\1" * (4 << 20))
    assert SysfsMeasurements(ccel=path).ccel() == b"\1" * (4 << 20)


@pytest.mark.parametrize("size", [0, (4 << 20) + 1])
def test_ccel_refuses_another_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "CCEL"
    path.write_bytes(bytes(size))
    with pytest.raises(HardwareUnavailable) as refused:
        SysfsMeasurements(ccel=path).ccel()
    assert refused.value.code == "ccel.size"
