"""Real TDX quotes end exactly as recorded, and real event logs replay to them. Origin: shared/vectors/README.md."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from vectors import VECTORS, needs_vectors

from antechamber.errors import AgentError, AppraisalRefused, MalformedEvidence
from antechamber.evidence import eventlog
from antechamber.evidence.anchors import NVIDIA_ROOT_SPKI, Anchors
from antechamber.evidence.chain import fmspc_of, verify_quote
from antechamber.evidence.collateral import TdxCollateral
from antechamber.evidence.tdx import Quote, require_production

pytestmark = needs_vectors

TDX = VECTORS / "tdx"
CCEL = VECTORS / "ccel"
INTEL = Anchors(None, NVIDIA_ROOT_SPKI)
ENTRIES: list[dict[str, Any]] = json.loads((TDX / "index.json").read_text()) if TDX.is_dir() else []
CASES = [(entry, case) for entry in ENTRIES for case in entry["cases"]]
# What dcap-qvl said when the vectors were recorded, and the code it has here.
REFUSALS = {
    "refused: Verification failed: No matching TCB level found": "quote.tcb-level",
    "refused: Verification failed: SEPT_VE_DISABLE is not enabled": "tdx.sept-ve",
}


def name(value: Any) -> str:
    return Path(value["quote"]).name[:8] if "quote" in value else str(value["now"])


def load(prefix: str) -> Quote:
    (path,) = (TDX / "quotes").glob(prefix + "*")
    return Quote.parse(path.read_bytes())


@pytest.mark.parametrize("entry", ENTRIES, ids=name)
def test_quote_parses_to_the_recorded_fields_when_real(entry: dict[str, Any]) -> None:
    raw = (TDX / entry["quote"]).read_bytes()
    quote = Quote.parse(raw + bytes(entry["delivered_len"] - len(raw)))  # padded, as it was delivered
    body = quote.body
    assert quote.raw == raw
    assert (quote.version, quote.body_type) == (entry["version"], {"TD10": 2, "TD15": 3}[entry["body"]])
    assert fmspc_of(quote) == entry["fmspc"]
    seen = {
        "td_attributes": body.td_attributes.hex(),
        "xfam": body.xfam.hex(),
        "tee_tcb_svn": body.tee_tcb_svn.hex(),
        "mr_seam": body.mr_seam.hex(),
        "mrtd": body.mr_td.hex(),
        "mrconfigid": body.mr_config_id.hex(),
        "rtmr": [register.hex() for register in body.rtmr],
        "report_data": body.report_data.hex(),
    }
    assert seen == {key: entry[key] for key in seen}


@pytest.mark.parametrize(("entry", "case"), CASES, ids=name)
def test_quote_ends_as_recorded_when_real(entry: dict[str, Any], case: dict[str, Any]) -> None:
    quote = Quote.parse((TDX / entry["quote"]).read_bytes())
    collateral = TdxCollateral.parse((TDX / case["collateral"]).read_bytes())
    if case["status"] in REFUSALS:
        with pytest.raises(AppraisalRefused) as refused:
            verify_quote(quote, collateral, INTEL, case["now"])
        assert refused.value.code == REFUSALS[case["status"]]
        return
    verdict = verify_quote(quote, collateral, INTEL, case["now"])
    assert (verdict.tcb_status, list(verdict.advisory_ids)) == (case["status"], case["advisory_ids"])
    assert (verdict.anchor, verdict.fmspc) == ("intel", entry["fmspc"])
    assert verdict.earliest_expiration > case["now"]
    require_production(quote.body)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if "refused_because" in e], ids=name)
def test_quote_is_refused_by_our_own_attributes_when_recorded_so(entry: dict[str, Any]) -> None:
    assert entry["refused_because"].startswith("debug TD")
    with pytest.raises(AppraisalRefused) as refused:
        require_production(Quote.parse((TDX / entry["quote"]).read_bytes()).body)
    assert refused.value.code == "tdx.debug"


def test_every_recorded_refusal_has_a_code() -> None:
    assert {c["status"] for _, c in CASES if c["status"].startswith("refused")} == set(REFUSALS)
    assert all(entry["cases"] or "refused_because" in entry for entry in ENTRIES)


@pytest.mark.parametrize(
    ("log", "quote", "count"), [("gcp-cos113", "00b2526a", 43), ("baremetal", "3ab56d67", 20)], ids=["gcp", "baremetal"]
)
def test_ccel_replays_to_its_quote_when_real(log: str, quote: str, count: int) -> None:
    raw = (CCEL / log / "ccel_data.dat").read_bytes()
    events = eventlog.parse_log(raw)
    assert len(events) == count
    eventlog.require_replay(events, load(quote).body)
    assert eventlog.runtime_events(events) == ()
    assert eventlog.parse_log(eventlog.compose_log(raw, b"")) == events


def test_ccel_is_refused_when_a_separator_stands_twice() -> None:
    raw = (CCEL / "gcp-cos113" / "NEGATIVE-dupe-separator.bin").read_bytes()
    with pytest.raises(MalformedEvidence) as refused:
        eventlog.parse_log(raw)
    assert refused.value.code == "eventlog.separator"


def test_ccel_is_refused_when_rtmr2_differs() -> None:
    events = eventlog.parse_log((CCEL / "baremetal" / "NEGATIVE-rtmr2-differs.dat").read_bytes())
    with pytest.raises(AppraisalRefused) as refused:
        eventlog.require_replay(events, load("3ab56d67").body)
    assert refused.value.code == "eventlog.replay"
    assert "RTMR2" in refused.value.detail


def test_ccel_is_refused_when_it_belongs_to_another_quote() -> None:
    events = eventlog.parse_log((CCEL / "baremetal" / "ccel_data.dat").read_bytes())
    with pytest.raises(AppraisalRefused) as refused:
        eventlog.require_replay(events, load("00b2526a").body)
    assert refused.value.code == "eventlog.replay"


def dstack_log() -> tuple[bytes, Quote]:
    """dstack's JSON log as the records it stands for: registers count from 1, digests are SHA-384."""
    report = json.loads((CCEL / "dstack" / "quote-report.json").read_text())
    records = b""
    for entry in json.loads(report["event_log"]):
        payload = bytes.fromhex(entry["event_payload"])
        records += struct.pack("<IIIH", entry["imr"] + 1, entry["event_type"], 1, 0x000C)
        records += bytes.fromhex(entry["digest"]) + struct.pack("<I", len(payload)) + payload
    return eventlog.compose_log(None, records), Quote.parse(bytes.fromhex(report["quote"]))


def test_dstack_log_replays_to_all_four_registers_when_real() -> None:
    log, quote = dstack_log()
    assert quote.raw == load("cbdb5b2f").raw
    eventlog.require_replay(eventlog.parse_log(log), quote.body)


def test_dstack_runtime_events_are_refused_when_read_as_ours() -> None:
    log, _ = dstack_log()
    with pytest.raises(AgentError) as refused:
        eventlog.runtime_events(eventlog.parse_log(log))
    assert refused.value.code == "eventlog.foreign"
