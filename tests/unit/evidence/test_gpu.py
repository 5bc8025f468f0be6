import json
from contextlib import suppress

import pytest
from fake_nvidia import FWID, LEGACY, NONCE, legacy, nvdaod, signed_part
from hypothesis import example, given
from hypothesis import strategies as st
from nvidia_vectors import NVIDIA, b200, hgx, raw_report
from vectors import needs_vectors

from antechamber.errors import MalformedEvidence
from antechamber.evidence.gpu import Opaque, Report

SIGNATURE = b"\1" * 96
REPORTS = {
    "hopper/hopperAttestationReport.txt": ("550.90.07", "96.00.9F.00.01", "", "spt", 4021),
    "hopper/hopper-535-report.txt": ("535.86.09", "96.00.5E.00.01", "", "unknown", 3956),
    "hopper/hopper_coco_report1.txt": ("580.95.05", "96.00.74.00.1A", "", "spt", 4033),
    "blackwell/blackwellAttestationReport.txt": ("575.32", "97.00.88.00.0F", "", "unknown", 4025),
    "switch/switchAttestationReport.txt": ("", "96.10.55.00.01", "", "unknown", 2072),
    "negative/hopperAttestationReportInvalidSignature.txt": ("560.00", "96.00.A5.00.01", "", "ppcie", 4166),
}


def refusal(raw: bytes) -> str:
    with pytest.raises(MalformedEvidence) as refused:
        Report.parse(raw)
    return refused.value.code


def fields(*changed: tuple[int, bytes], drop: tuple[int, ...] = ()) -> tuple[tuple[int, bytes], ...]:
    return (
        tuple((dict(LEGACY) | dict(changed)).items())
        if not drop
        else tuple((k, v) for k, v in (dict(LEGACY) | dict(changed)).items() if k not in drop)
    )


@needs_vectors
@pytest.mark.parametrize("path", REPORTS)
def test_report_parses_real_reports(path: str) -> None:
    report = Report.parse(raw_report(path))
    driver, vbios, chip, mode, signed = REPORTS[path]
    opaque = report.opaque
    assert (opaque.driver_version, opaque.vbios_version, opaque.chip, opaque.mode) == (driver, vbios, chip, mode)
    assert len(report.signed) == signed
    assert len(report.measurements) == (31 if path.startswith("switch") else 64)


@needs_vectors
def test_report_has_the_measurements_that_nvidia_reads() -> None:
    claims = json.loads((NVIDIA / "hopper/hopperAttestationReport-claims.txt").read_text())
    report = Report.parse(raw_report("hopper/hopperAttestationReport.txt"))
    assert {str(i): m.hex() for i, m in enumerate(report.measurements, 1)} == claims["measurements"]
    assert report.opaque.fwid is not None
    assert report.opaque.fwid.hex() == claims["config"]["fwid"]


@needs_vectors
def test_report_says_its_mode_on_multi_gpu_machines() -> None:
    assert {Report.parse(e.report).opaque.mode for e in b200()} == {"mpt"}
    assert {Report.parse(e.report).opaque.chip for e in b200()} == {"GB100"}
    assert {Report.parse(e.report).opaque.mode for e in hgx("gpu_evidence")} == {"ppcie"}


def test_report_parses_both_opaque_forms() -> None:
    old = Report.parse(signed_part() + SIGNATURE)
    new = Report.parse(signed_part(nvdaod()) + SIGNATURE)
    assert old.nonce == NONCE
    assert (old.opaque.version, new.opaque.version) == (1, 2)
    assert old.opaque.fields == new.opaque.fields
    assert new.opaque.fwid == FWID
    assert new.signature == SIGNATURE


def test_report_tolerates_one_nul_after_the_signature() -> None:
    assert Report.parse(signed_part() + SIGNATURE + b"\0") == Report.parse(signed_part() + SIGNATURE)


@pytest.mark.parametrize("tail", [b"\0\0", b"\1", b"\n", b"\0" * 96])
def test_report_refuses_another_tail(tail: bytes) -> None:
    assert refusal(signed_part() + SIGNATURE + tail) == "gpu-report.tail"


@pytest.mark.parametrize(
    "indices",
    [(1, *range(1, 64)), (*range(1, 64), 65), (2, 1, *range(3, 65)), range(64), (*range(1, 64), 63)],
    ids=["twice", "gap", "swapped", "from zero", "twice at the end"],
)
def test_report_refuses_a_wrong_index(indices: tuple[int, ...]) -> None:
    assert refusal(signed_part(indices=indices) + SIGNATURE) == "gpu-report.blocks"


@pytest.mark.parametrize(("blocks", "count"), [(63, None), (65, None), (30, None), (0, None), (64, 31), (31, 64)])
def test_report_refuses_another_number_of_blocks(blocks: int, count: int | None) -> None:
    raw = signed_part(indices=range(1, blocks + 1), count=count) + SIGNATURE
    assert refusal(raw) == "gpu-report.blocks"


@pytest.mark.parametrize("at", [46, 47, 48, 49, 50, 51])
def test_report_refuses_a_block_that_is_no_sha384(at: int) -> None:
    raw = bytearray(signed_part() + SIGNATURE)
    raw[at] ^= 2
    assert refusal(bytes(raw)) == "gpu-report.blocks"


@pytest.mark.parametrize(
    ("at", "code"),
    [(0, "request"), (1, "request"), (2, "request"), (3, "request"), (37, "response"), (38, "response")],
)
def test_report_refuses_another_message(at: int, code: str) -> None:
    raw = bytearray(signed_part() + SIGNATURE)
    raw[at] ^= 3  # 0x12 is SPDM 1.2
    assert refusal(bytes(raw)) == f"gpu-report.{code}"


def test_report_refuses_every_cut() -> None:
    whole = signed_part() + SIGNATURE
    for size in [*range(80), *range(3500, len(whole), 13), len(whole) - 1]:
        assert refusal(whole[:size]).startswith("gpu-report.")


def test_report_refuses_more_than_nvml_can_return() -> None:
    assert refusal(signed_part(bytes(0xFFFF)) + SIGNATURE) == "gpu-report.size"


@pytest.mark.parametrize(
    "opaque",
    [
        legacy((*LEGACY, (20, FWID))),
        legacy() + b"\1",
        legacy() + b"\1\0\5\0\0",
        b"NVDAOD",
        nvdaod() + b"\1\0\1\0\1",
        nvdaod((*LEGACY, (3, b""))),
    ],
    ids=["field twice", "rest", "field cut", "header cut", "rest in NVDAOD", "field twice in NVDAOD"],
)
def test_opaque_refuses_what_is_not_fields(opaque: bytes) -> None:
    assert refusal(signed_part(opaque) + SIGNATURE) == "gpu-report.opaque"


@pytest.mark.parametrize("opaque", [nvdaod(major=3), nvdaod(major=1), nvdaod(profile=1), legacy(fields((34, b"\2\0")))])
def test_opaque_refuses_an_unknown_version(opaque: bytes) -> None:
    assert refusal(signed_part(opaque) + SIGNATURE) == "gpu-report.version"


@pytest.mark.parametrize(
    ("changed", "drop", "mode"),
    [
        (((36, b"\0\0"),), (), "spt"),
        (((36, b"\1\0"),), (), "mpt"),
        (((36, b"\2\0"), (21, b"\xaa")), (), "ppcie"),
        (((36, b"\3\0"),), (), "unknown"),
        (((36, b""),), (), "unknown"),
        (((21, b"\xaa"),), (34, 36), "ppcie"),
        (((21, b"\x55"),), (34, 36), "spt"),
        (((21, b"\x54"),), (34, 36), "unknown"),
        ((), (34, 36), "unknown"),
    ],
)
def test_opaque_mode_is_what_the_fields_say(
    changed: tuple[tuple[int, bytes], ...], drop: tuple[int, ...], mode: str
) -> None:
    assert Opaque.parse(legacy(fields(*changed, drop=drop))).mode == mode


@pytest.mark.parametrize(("flag", "status"), [(b"\0\0", b"\xaa"), (b"\1\0", b"\xaa"), (b"\2\0", b"\x55")])
def test_opaque_mode_refuses_fields_that_disagree(flag: bytes, status: bytes) -> None:
    with pytest.raises(MalformedEvidence) as refused:
        _ = Opaque.parse(legacy(fields((36, flag), (21, status)))).mode
    assert refused.value.code == "gpu-report.mode"


@pytest.mark.parametrize(
    ("kind", "value", "name", "code"),
    [
        (3, b"570; rm -rf\0", "driver_version", "opaque"),
        (3, b"devel\0", "driver_version", "driver"),
        (6, b"\0" * 7, "vbios_version", "vbios"),
        (20, bytes(47), "fwid", "fwid"),
        (35, b"\xff\xfe", "chip", "opaque"),
    ],
)
def test_opaque_refuses_a_value_of_another_form(kind: int, value: bytes, name: str, code: str) -> None:
    with pytest.raises(MalformedEvidence) as refused:
        getattr(Opaque.parse(legacy(fields((kind, value)))), name)
    assert refused.value.code == f"gpu-report.{code}"


def read_all(raw: bytes) -> None:
    opaque = Report.parse(raw).opaque
    for name in ("driver_version", "vbios_version", "chip", "fwid", "mode"):
        with suppress(MalformedEvidence):
            getattr(opaque, name)


@given(st.binary(max_size=200))
def test_report_parses_or_refuses_any_bytes(raw: bytes) -> None:
    with suppress(MalformedEvidence):
        read_all(raw)


@given(st.binary(max_size=400))
@example(b"NVDAOD" + bytes(5))
@example(legacy())
def test_report_parses_or_refuses_any_opaque_data(opaque: bytes) -> None:
    with suppress(MalformedEvidence):
        read_all(signed_part(opaque) + SIGNATURE)


@given(st.integers(0, 4100), st.binary(min_size=1, max_size=4))
def test_report_parses_or_refuses_any_change(at: int, value: bytes) -> None:
    raw = signed_part(nvdaod()) + SIGNATURE
    with suppress(MalformedEvidence):
        read_all(raw[:at] + value + raw[at + len(value) :])
