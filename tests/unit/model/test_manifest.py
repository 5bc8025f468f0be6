import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packages import GOLDEN

from antechamber.errors import ModelCorrupt
from antechamber.model.manifest import Golden, Header, Manifest, refuse_names

HEADER: dict[str, Any] = {
    "format": "antechamber-sealed/1",
    "package": "ab" * 16,
    "key_id": "k1",
    "key_check": "cd" * 16,
    "version": 1,
    "segment_size": 4096,
    "manifest_size": 10,
}
FILE: dict[str, Any] = {"path": "a", "size": 1, "sha256": "00" * 32, "data": 0}
MANIFEST: dict[str, Any] = {k: HEADER[k] for k in ("format", "package", "key_id", "version", "segment_size")} | {
    "model_hash": "sha256:" + "00" * 32,
    "golden": GOLDEN,
    "files": [FILE],
}


def header_with(**changes: Any) -> bytes:
    return json.dumps(HEADER | changes).encode()


def manifest_with(**changes: Any) -> bytes:
    return json.dumps(MANIFEST | changes).encode()


def test_header_encodes_what_it_parses() -> None:
    header = Header.parse(header_with())
    assert Header.parse(header.encode()) == header


def test_manifest_encodes_what_it_parses_with_chat_and_midstates() -> None:
    golden = GOLDEN | {"prompt": [{"role": "user", "content": "hi"}]}
    manifest = Manifest.parse(manifest_with(golden=golden, files=[FILE | {"midstates": "AAAA"}]))
    assert Manifest.parse(manifest.encode()) == manifest


@pytest.mark.parametrize(
    "change",
    [
        {"format": "antechamber-sealed/2"},
        {"package": "AB" * 16},
        {"package": "ab" * 15},
        {"key_check": ""},
        {"key_id": ""},
        {"key_id": "a\nb"},
        {"version": 0},
        {"version": 1 << 63},
        {"version": True},
        {"version": 1.0},
        {"segment_size": 0},
        {"segment_size": 4097},
        {"segment_size": 1 << 30},
        {"manifest_size": 0},
        {"manifest_size": 1 << 40},
        {"more": 1},
        {"key_id": "x" * 5000},
    ],
)
def test_header_refuses_when_a_field_is_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ModelCorrupt) as refused:
        Header.parse(header_with(**change))
    assert refused.value.code == "model.header"


def test_header_refuses_utf_16_and_duplicate_keys() -> None:
    for raw in (header_with().decode().encode("utf-16"), header_with()[:-1] + b',"version":2}'):
        with pytest.raises(ModelCorrupt) as refused:
            Header.parse(raw)
        assert refused.value.code == "model.header"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"files": []}, "model.manifest"),
        ({"files": [FILE, FILE | {"path": "b"}]}, "model.manifest"),
        ({"files": [FILE | {"size": -1}]}, "model.manifest"),
        ({"files": [FILE | {"size": 1 << 60}]}, "model.manifest"),
        ({"files": [FILE | {"data": 100_000_000}]}, "model.manifest"),
        ({"files": [FILE | {"sha256": "0" * 63}]}, "model.manifest"),
        ({"files": [FILE | {"mode": 0o777}]}, "model.manifest"),
        ({"files": {}}, "model.manifest"),
        ({"model_hash": "sha256:0"}, "model.hash"),
        ({"golden": None}, "model.golden"),
        ({"golden": GOLDEN | {"accept": []}}, "model.golden"),
        ({"golden": GOLDEN | {"prompt": ""}}, "model.golden"),
        ({"golden": GOLDEN | {"prompt": []}}, "model.golden"),
        ({"golden": GOLDEN | {"max_tokens": 0}}, "model.golden"),
        ({"golden": GOLDEN | {"accept": [{"engine": "builtin", "precision": "", "text": "x"}]}}, "model.golden"),
    ],
)
def test_manifest_refuses_when_a_field_is_wrong(change: dict[str, Any], code: str) -> None:
    with pytest.raises(ModelCorrupt) as refused:
        Manifest.parse(manifest_with(**change))
    assert refused.value.code == code


@pytest.mark.parametrize(
    "paths",
    [
        ["a", "a"],
        ["a", "A"],
        ["a", "a/b"],
        ["a/b", "A"],
        ["d/a", "D/b"],
        ["-"],
        ["a\rb"],
        ["x" * 256],
        ["a/" * 600 + "a"],
    ],
)
def test_names_are_refused_when_they_collide_or_are_not_plain(paths: list[str]) -> None:
    with pytest.raises(ModelCorrupt) as refused:
        refuse_names(paths)
    assert refused.value.code == "model.name"


@pytest.mark.parametrize("path", ["m.py", "x/PyTorch_Model.BIN", "a.pt", "a.pth", "a.pkl", "lib.so", "a.ckpt"])
def test_names_are_refused_when_an_engine_would_run_them(path: str) -> None:
    with pytest.raises(ModelCorrupt) as refused:
        refuse_names([path])
    assert refused.value.code == "model.code"


def test_golden_accepts_only_what_was_sealed_for_this_engine_and_precision() -> None:
    golden = Golden.parse(json.dumps(GOLDEN))
    assert golden.accepts("builtin", "float32", "4")
    assert not golden.accepts("builtin", "float32", "4 ")
    assert not golden.accepts("builtin", "bfloat16", "4")
    assert not golden.accepts("vllm", "float32", "4")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.binary(max_size=80))
def test_header_and_manifest_parse_or_refuse_any_bytes(raw: bytes) -> None:
    for parse in (Header.parse, Manifest.parse, Golden.parse):
        with suppress(ModelCorrupt):
            parse(raw)


@settings(max_examples=60)
@given(field=st.sampled_from(sorted(MANIFEST)), value=json_values, in_file=st.sampled_from([*sorted(FILE), ""]))
def test_manifest_parses_or_refuses_any_value_in_any_field(field: str, value: Any, in_file: str) -> None:
    change = {"files": [FILE | {in_file: value}]} if in_file else {field: value}
    with suppress(ModelCorrupt):
        Manifest.parse(manifest_with(**change))


@settings(max_examples=60)
@given(at=st.integers(0, len(header_with()) - 1), byte=st.integers(0, 255))
def test_header_parses_or_refuses_when_any_byte_differs(at: int, byte: int) -> None:
    raw = bytearray(header_with())
    raw[at] = byte
    with suppress(ModelCorrupt):
        Header.parse(bytes(raw))
