"""Bundles and composite Evidence: read whole, or refused; what verifies is in tests/attack/test_client.py."""

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from fuzz.targets.bundle import Guest
from hypothesis import given
from hypothesis import strategies as st

from antechamber.errors import MalformedEvidence
from antechamber.evidence.bundle import Transcript, parse_bundle, transcript_text
from antechamber.evidence.composite import CompositeEvidence, GpuEvidence, additional_evidence

WHOLE: dict[str, Any] = json.loads(Guest().bundle())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_bundle_parses_or_refuses_any_bytes(raw: bytes) -> None:
    with suppress(MalformedEvidence):
        parse_bundle(raw)


@given(st.sampled_from(sorted(WHOLE)), JSON)
def test_bundle_parses_or_refuses_any_member(name: str, value: object) -> None:
    with suppress(MalformedEvidence):
        parse_bundle(json.dumps(WHOLE | {name: value}).encode())


@given(st.sampled_from(sorted(json.loads(WHOLE["transcript"]))), JSON)
def test_transcript_parses_or_refuses_any_member(name: str, value: object) -> None:
    changed = json.dumps(json.loads(WHOLE["transcript"]) | {name: value})
    with suppress(MalformedEvidence):
        assert parse_bundle(json.dumps(WHOLE | {"transcript": changed}).encode()).transcript_text == changed


def test_transcript_is_written_as_it_is_read() -> None:
    transcript = parse_bundle(json.dumps(WHOLE).encode()).transcript
    assert isinstance(transcript, Transcript)
    assert transcript_text(transcript) == WHOLE["transcript"]


@given(st.text(max_size=80) | JSON.map(lambda value: json.dumps({"nvidia": {"device_evidence_list": value}})))
def test_devices_parse_or_refuse_any_text(text: str) -> None:
    with suppress(MalformedEvidence):
        CompositeEvidence(b"quote", None, text).devices()


RAW = st.binary(min_size=1, max_size=9)


@given(st.lists(st.builds(GpuEvidence, st.text(max_size=9), st.text(max_size=99), RAW, RAW), max_size=16))
def test_devices_are_read_as_they_are_written(devices: list[GpuEvidence]) -> None:
    evidence = CompositeEvidence(b"quote", b"log", additional_evidence(devices))
    assert evidence.devices() == tuple(devices)
    assert CompositeEvidence.from_kbs(evidence.primary(), evidence.additional) == evidence


@given(JSON, JSON)
def test_evidence_parses_or_refuses_any_json(primary: object, additional: object) -> None:
    with suppress(MalformedEvidence):
        CompositeEvidence.from_kbs(primary, additional)


def test_devices_over_their_limit_are_refused() -> None:
    text = base64.b64encode(b"x").decode()
    one = {"arch": "HOPPER", "uuid": "", "evidence": text, "certificate": text}
    listed = json.dumps({"nvidia": {"device_evidence_list": [one] * 17}})
    with pytest.raises(MalformedEvidence) as refused:
        CompositeEvidence(b"quote", None, listed).devices()
    assert refused.value.code == "evidence.devices"
