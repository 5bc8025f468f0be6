"""CCEL and AAEL records: what replays, what is refused. Vectors of AAEL: shared/vectors/kbs/aael.json."""

import base64
import hashlib
import json
import struct
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors import VECTORS, needs_vectors

from antechamber.errors import AppraisalRefused, MalformedEvidence
from antechamber.evidence import eventlog
from antechamber.evidence.eventlog import EL_HEADER, AaelEvent, Event
from antechamber.evidence.tdx import TdBody
from antechamber.simulator.intel import td_body

SPEC = b"Spec ID Event03\0" + bytes(4) + bytes([0, 2, 0, 2]) + struct.pack("<IHHB", 1, 0x000C, 48, 0)
HEADER = struct.pack("<II20sI", 1, 3, b"", len(SPEC)) + SPEC
TEXT = AaelEvent("antechamber", "model", "sha256:00")


def record(
    register: int = 1, kind: int = 8, digest: bytes = b"\7" * 48, data: bytes = b"data", algorithm: int = 12
) -> bytes:
    return struct.pack("<IIIH", register, kind, 1, algorithm) + digest + struct.pack("<I", len(data)) + data


def code_of(raw: bytes) -> str:
    with pytest.raises(MalformedEvidence) as refused:
        eventlog.parse_log(raw)
    return refused.value.code


@needs_vectors
def test_aael_encodes_byte_for_byte_as_guest_components_do() -> None:
    vector = json.loads((VECTORS / "kbs" / "aael.json").read_text())
    assert vector["el_header_hex"] == EL_HEADER.hex()
    records = b""
    for entry in vector["entries"]:
        event = AaelEvent(*entry["text"].split(" ", 2))
        assert event.tagged.hex() == entry["tagged_event_hex"]
        assert event.digest().hex() == entry["digest_sha384"]
        assert event.encode().hex() == entry["tcg2_entry_hex"]
        records += event.encode()
        assert eventlog.replay(eventlog.parse_log(EL_HEADER + records))[3].hex() == entry["rtmr3_after"]
    log = eventlog.compose_log(None, records)
    assert base64.b64encode(log).decode() == vector["cc_eventlog_without_ccel_b64"]
    events = eventlog.parse_log(log)
    assert [e.text for e in eventlog.runtime_events(events)] == [e["text"] for e in vector["entries"]]
    assert eventlog.replay(events) == (bytes(48), bytes(48), bytes(48), bytes.fromhex(vector["rtmr3_final"]))
    unit = vector["unit_test_digest"]
    assert AaelEvent(*unit["text"].split(" ")).digest().hex() == unit["sha384"]


def test_aael_takes_spaces_when_in_the_content() -> None:
    event = AaelEvent("antechamber", "gpu", '{"a": 1,  "b": 2}')
    (parsed,) = eventlog.parse_log(EL_HEADER + event.encode())
    assert AaelEvent.parse(parsed) == event


@pytest.mark.parametrize(
    "parts",
    [
        ("", "model", "x"), ("a", "", "x"), ("a", "b", ""), ("a b", "c", "d"), ("a", "b c", "d"), ("a", "b", " c"),
        ("a", "b", "c\nd"), ("a", "b", "c\0d"), ("a", "b\n", "c"), ("a", "b", "\u2028"), ("a", "b", "\ud800"),
        ("a", "b", "c" * 4096),
    ],
    ids=repr,
)  # fmt: skip
def test_aael_is_refused_when_its_text_breaks_the_rules(parts: tuple[str, str, str]) -> None:
    with pytest.raises(MalformedEvidence) as refused:
        AaelEvent(*parts)
    assert refused.value.code == "eventlog.text"


def tagged(text: bytes, tag: int = 0x4141454C, size: int | None = None) -> Event:
    data = struct.pack("<II", tag, len(text) if size is None else size) + text
    return Event(3, hashlib.sha384(data).digest(), 6, data)


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (replace(tagged(b"a b c"), kind=13), "eventlog.foreign"),
        (replace(tagged(b"a b c"), kind=3), "eventlog.foreign"),
        (replace(tagged(b"a b c"), data=b"short"), "eventlog.foreign"),
        (tagged(b"a b c", tag=1), "eventlog.foreign"),
        (tagged(b"a b c", size=4), "eventlog.foreign"),
        (tagged(b"a b"), "eventlog.text"),
        (tagged(b"a b \xff"), "eventlog.text"),
        (tagged(b"a b c\n"), "eventlog.text"),
        (replace(tagged(b"a b c"), digest=bytes(48)), "eventlog.digest"),
    ],
)
def test_runtime_event_is_refused_when_not_ours(event: Event, code: str) -> None:
    with pytest.raises(MalformedEvidence) as refused:
        eventlog.runtime_events([tagged(b"a b c"), event])
    assert refused.value.code == code


@pytest.mark.parametrize(("count", "size"), [(64, 4), (16, 4080)])
def test_runtime_events_are_bounded_in_number_and_size(count: int, size: int) -> None:
    """A genuine TD that nobody vouches for would else have the broker sign and keep megabytes."""
    event = tagged(b"a b " + b"c" * size)
    assert len(eventlog.runtime_events([event] * count)) == count
    with pytest.raises(MalformedEvidence) as refused:
        eventlog.runtime_events([event] * (count + 1))
    assert refused.value.code == "eventlog.events"


def test_log_parses_to_events_when_well_formed() -> None:
    events = eventlog.parse_log(HEADER + record(1) + record(4, 6) + b"\xff" * 100)
    assert events == (Event(0, b"\7" * 48, 8, b"data"), Event(3, b"\7" * 48, 6, b"data"))


@pytest.mark.parametrize("padding", [b"", b"\xff" * 3, b"\xff" * 4096, bytes(7), bytes(64)], ids=len)
def test_log_ends_when_only_padding_follows(padding: bytes) -> None:
    assert len(eventlog.parse_log(HEADER + record() + padding)) == 1


def test_log_takes_the_sha384_digest_when_there_are_several() -> None:
    spec = SPEC[:24] + struct.pack("<IHHHHB", 2, 0x000B, 32, 0x000C, 48, 0)
    header = struct.pack("<II20sI", 0, 3, b"", len(spec)) + spec
    several = struct.pack("<IIIH", 2, 8, 2, 0x000B) + b"\1" * 32 + struct.pack("<H", 0x000C) + b"\2" * 48 + bytes(4)
    assert eventlog.parse_log(header + several) == (Event(1, b"\2" * 48, 8, b""),)


def header(spec: bytes, *, kind: int = 3, register: int = 1, size: int | None = None, sha1: bytes = b"") -> bytes:
    return struct.pack("<II20sI", register, kind, sha1, len(spec) if size is None else size) + spec


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "eventlog.short"),
        (HEADER[:40], "eventlog.short"),
        (HEADER + record()[:-1], "eventlog.short"),
        (HEADER + record()[:30], "eventlog.short"),
        (header(SPEC, kind=8), "eventlog.header"),
        (header(SPEC, register=4), "eventlog.header"),
        (header(SPEC, sha1=b"\1" * 20), "eventlog.header"),
        (header(b"Spec ID Event02\0" + SPEC[16:]), "eventlog.header"),
        (header(SPEC[:20]), "eventlog.header"),
        (header(SPEC + b"\0"), "eventlog.header"),
        (header(SPEC[:-1] + b"\1"), "eventlog.header"),
        (header(SPEC[:24] + struct.pack("<IHHB", 1, 0x000B, 32, 0)), "eventlog.header"),
        (header(SPEC[:24] + struct.pack("<IHHB", 1, 0x000C, 32, 0)), "eventlog.header"),
        (header(SPEC[:24] + struct.pack("<IHHHHB", 2, 0x000C, 48, 0x000C, 48, 0)), "eventlog.header"),
        (header(SPEC[:24] + struct.pack("<IHHB", 0, 0x000C, 48, 0)), "eventlog.header"),
        (header(SPEC[:24] + b"\xff" * 9), "eventlog.header"),
        (HEADER + record(0), "eventlog.register"),
        (HEADER + record(5), "eventlog.register"),
        (HEADER + record(algorithm=4), "eventlog.algorithm"),
        (HEADER + struct.pack("<IIIH", 1, 8, 1, 0x000B) + bytes(36), "eventlog.algorithm"),
        (HEADER + struct.pack("<III", 1, 8, 0), "eventlog.algorithm"),
        (HEADER + struct.pack("<III", 1, 8, 1 << 31), "eventlog.algorithm"),
        (HEADER + struct.pack("<III", 1, 8, 2) + (b"\x0c\0" + bytes(48)) * 2 + bytes(4), "eventlog.algorithm"),
        (HEADER + record() + b"\xff" * 8 + record(), "eventlog.tail"),
        (HEADER + record() + b"\xff" * 8 + bytes(8), "eventlog.tail"),
        (HEADER + record(1, 4) + record(2, 4) + record(1, 4), "eventlog.separator"),
        (HEADER + record(data=b"") * 8193, "eventlog.events"),
        (HEADER + bytes(4 << 20), "eventlog.size"),
    ],
    ids=lambda v: v if isinstance(v, str) else f"{len(v)}",
)  # fmt: skip
def test_log_is_refused_when_malformed(raw: bytes, code: str) -> None:
    assert code_of(raw) == code


def test_log_allows_one_separator_in_each_register() -> None:
    assert len(eventlog.parse_log(HEADER + record(1, 4) + record(2, 4) + record(3, 4))) == 3


@given(st.binary(max_size=512), st.sampled_from([b"", HEADER, EL_HEADER]))
def test_log_parses_or_refuses_any_bytes(raw: bytes, before: bytes) -> None:
    with suppress(MalformedEvidence):
        eventlog.runtime_events(eventlog.parse_log(before + raw))


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=60))
def test_aael_event_survives_encoding_or_is_refused_with_any_text(domain: str, operation: str, content: str) -> None:
    with suppress(MalformedEvidence):
        event = AaelEvent(domain, operation, content)
        assert eventlog.runtime_events(eventlog.parse_log(eventlog.compose_log(None, event.encode()))) == (event,)


def test_replay_extends_each_register_from_zero() -> None:
    events = eventlog.parse_log(HEADER + record(1) + record(1, digest=b"\1" * 48) + record(3, 3) + record(4))
    once = hashlib.sha384(bytes(48) + b"\7" * 48).digest()
    twice = hashlib.sha384(once + b"\1" * 48).digest()
    assert eventlog.replay(events) == (twice, bytes(48), bytes(48), once)  # EV_NO_ACTION extends nothing


@pytest.mark.parametrize("register", range(4))
def test_replay_is_refused_when_a_register_differs(register: int) -> None:
    rtmr = [bytes(48)] * 4
    eventlog.require_replay((), TdBody.parse(td_body(rtmr=rtmr), 2))
    rtmr[register] = b"\1" * 48
    with pytest.raises(AppraisalRefused) as refused:
        eventlog.require_replay((), TdBody.parse(td_body(rtmr=rtmr), 2))
    assert refused.value.code == "eventlog.replay"
    assert f"RTMR{register}" in refused.value.detail


def test_composed_log_holds_both_parts_when_there_is_a_ccel() -> None:
    ccel = HEADER + record(1) + record(2)
    log = eventlog.compose_log(ccel + b"\xff" * 65536, TEXT.encode())
    assert log == ccel + TEXT.encode() + b"\xff" * 8
    assert [e.register for e in eventlog.parse_log(log)] == [0, 1, 3]


def test_composed_log_is_refused_when_the_ccel_is_garbage() -> None:
    with pytest.raises(MalformedEvidence):
        eventlog.compose_log(b"garbage" * 20, b"")
