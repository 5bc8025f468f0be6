"""Quotes of versions 4 and 5: each byte has a place, and each refusal its code."""

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antechamber.errors import AppraisalRefused, MalformedEvidence
from antechamber.evidence.tdx import Quote, TdBody, require_production
from antechamber.simulator.intel import IntelPki, td_body

PKI = IntelPki(1_790_000_000, seed=bytes(32))
BODY = td_body(report_data=bytes(range(64)))
V4 = PKI.quote_v4(BODY)
V5 = {kind: PKI.quote_v5(BODY, kind) for kind in (2, 3, 4)}
SIGNED_V4 = 48 + 584
DATA = SIGNED_V4 + 4
CERTIFICATION = DATA + 128
AUTH = CERTIFICATION + 6 + 384 + 64


def code_of(raw: bytes) -> str:
    with pytest.raises(MalformedEvidence) as refused:
        Quote.parse(raw)
    return refused.value.code


def patched(raw: bytes, at: int, data: bytes) -> bytes:
    return raw[:at] + data + raw[at + len(data) :]


def with_tail(certified: bytes) -> bytes:
    """V4 with its QE certification data replaced, all sizes right."""
    data = V4[DATA:CERTIFICATION] + struct.pack("<HI", 6, len(certified)) + certified
    return V4[:SIGNED_V4] + struct.pack("<I", len(data)) + data


def test_quote_parses_to_its_fields_when_version_4() -> None:
    quote = Quote.parse(V4)
    assert (quote.version, quote.body_type, quote.raw) == (4, 2, V4)
    assert quote.signed == V4[:SIGNED_V4]
    assert quote.body.report_data == bytes(range(64))
    assert quote.body.mr_td == b"\x11" * 48
    assert quote.body.rtmr == (b"\1" * 48, b"\2" * 48, b"\3" * 48, bytes(48))
    assert (quote.body.tee_tcb_svn2, quote.body.mr_servicetd, quote.body.extension) == (None, None, None)
    assert quote.pck_chain.count(b"BEGIN CERTIFICATE") == 3
    assert [len(x) for x in (quote.signature, quote.attestation_key, quote.qe_report, quote.qe_signature)] == [
        64,
        64,
        384,
        64,
    ]


@pytest.mark.parametrize("kind", [2, 3, 4])
def test_quote_parses_to_its_body_type_when_version_5(kind: int) -> None:
    quote = Quote.parse(V5[kind])
    assert (quote.version, quote.body_type, quote.raw) == (5, kind, V5[kind])
    assert len(quote.signed) == 54 + {2: 584, 3: 648, 4: 885}[kind]
    assert quote.body.tee_tcb_svn2 == (None if kind == 2 else BODY[:16])
    assert (quote.body.extension is not None) == (kind == 4)


def test_quote_accounts_for_every_byte_when_parsed() -> None:
    quote = Quote.parse(V4)
    head = struct.pack("<HI", 6, len(V4) - CERTIFICATION - 6) + quote.qe_report + quote.qe_signature
    chain = quote.pck_chain + b"\0"
    tail = struct.pack("<H", 32) + quote.qe_auth + struct.pack("<HI", 5, len(chain)) + chain
    size = struct.pack("<I", len(V4) - DATA)
    assert quote.signed + size + quote.signature + quote.attestation_key + head + tail == V4


def test_quote_is_cut_at_its_own_length_when_zero_padded() -> None:
    assert Quote.parse(V4 + bytes(3000)) == Quote.parse(V4)


REFUSED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": ("quote.short", lambda: b""),
    "cut": ("quote.short", lambda: V4[:-1]),
    "header alone": ("quote.short", lambda: V4[:48]),
    "tail": ("quote.tail", lambda: V4 + b"\0\0\1\0"),
    "oversize": ("quote.size", lambda: V4 + bytes(128 << 10)),
    "SGX version": ("quote.version", lambda: patched(V4, 0, b"\3")),
    "CBOR of a DICE quote": ("quote.version", lambda: b"\xd2\x84\x43" + bytes(9000)),
    "P-384 key": ("quote.header", lambda: patched(V4, 2, b"\3")),
    "SGX TEE": ("quote.header", lambda: patched(V4, 4, b"\0")),
    "reserved": ("quote.header", lambda: patched(V4, 8, b"\1")),
    "QE vendor": ("quote.header", lambda: patched(V4, 12, b"\0")),
    "SGX body": ("quote.body", lambda: patched(V5[2], 48, b"\1\0\x80\1\0\0")),
    "unknown body": ("quote.body", lambda: patched(V5[3], 48, b"\5")),
    "body size": ("quote.body", lambda: patched(V5[3], 50, b"\x89")),
    "huge signature data": ("quote.signature-data", lambda: patched(V4, SIGNED_V4, b"\xff\xff\xff\xff")),
    "long signature data": (
        "quote.certification",
        lambda: patched(V4, SIGNED_V4, struct.pack("<I", len(V4) - DATA + 8)) + bytes(8),
    ),
    "certification type": ("quote.certification", lambda: patched(V4, CERTIFICATION, b"\5")),
    "certification size": ("quote.certification", lambda: patched(V4, CERTIFICATION + 2, b"\0")),
    "auth size": ("quote.certification", lambda: patched(V4, AUTH, b"\x10")),
    "PPID instead of a chain": ("quote.certification", lambda: patched(V4, AUTH + 34, b"\3")),
    "no certificates": (
        "quote.certification",
        lambda: with_tail(V4[CERTIFICATION + 6 : AUTH + 34] + struct.pack("<HI", 5, 0)),
    ),
    "text between certificates": ("quote.certification", lambda: V4.replace(b"-----\n-----", b"-----\t-----", 1)),
    "two NUL": (
        "quote.certification",
        lambda: with_tail(
            V4[CERTIFICATION + 6 : AUTH + 34] + struct.pack("<HI", 5, len(V4) - AUTH - 39) + V4[AUTH + 40 :] + b"\0"
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_quote_is_refused_when_malformed(case: str) -> None:
    code, raw = REFUSED[case]
    assert code_of(raw()) == code


@given(st.binary(max_size=1024))
def test_quote_parses_or_refuses_any_bytes(raw: bytes) -> None:
    with suppress(MalformedEvidence):
        Quote.parse(raw)


@given(st.integers(0, len(V4) - 1), st.integers(1, 255), st.sampled_from([V4, V5[4]]))
def test_quote_parses_or_refuses_any_changed_byte(at: int, flip: int, raw: bytes) -> None:
    with suppress(MalformedEvidence):
        assert Quote.parse(patched(raw, at, bytes([raw[at] ^ flip]))).raw != raw


@given(st.binary(max_size=900), st.integers(0, 6))
def test_body_parses_or_refuses_any_bytes(raw: bytes, kind: int) -> None:
    with suppress(MalformedEvidence):
        TdBody.parse(raw, kind)


def bits(*numbers: int) -> bytes:
    return sum(1 << n for n in (28, *numbers)).to_bytes(8, "little")


@pytest.mark.parametrize("number", [27, 30, 63])
def test_production_td_is_accepted_when_a_harmless_attribute_is_set(number: int) -> None:
    require_production(TdBody.parse(td_body(td_attributes=bits(number)), 2))


@pytest.mark.parametrize("xfam", ["e702060000000000", "e700060000000000", "e71806" + "0" * 10, "0702000000000000"])
def test_production_td_is_accepted_when_its_xfam_was_seen_on_real_hardware(xfam: str) -> None:
    require_production(TdBody.parse(td_body(xfam=bytes.fromhex(xfam)), 2))


OTHER_BITS = (1, 2, 3, 7, 8, 15, 16, 18, 26, 31, 32, 61, 62)  # reserved, or of no use here
UNFIT: dict[str, tuple[str, dict[str, Any]]] = {
    "debug": ("tdx.debug", {"td_attributes": bits(0)}),
    **{f"profiling {n}": ("tdx.profiling", {"td_attributes": bits(n)}) for n in (4, 5, 6)},
    "migratable": ("tdx.migratable", {"td_attributes": bits(29)}),
    "service TD extension": ("tdx.service-td", {"td_attributes": bits(17)}),
    **{f"bit {n}": ("tdx.attributes", {"td_attributes": bits(n)}) for n in OTHER_BITS},
    "no SEPT_VE_DISABLE": ("tdx.sept-ve", {"td_attributes": bytes(8)}),
    "no x87": ("tdx.xfam", {"xfam": bytes.fromhex("e602060000000000")}),
    "no SSE": ("tdx.xfam", {"xfam": bytes.fromhex("e502060000000000")}),
    "XFAM bit 3": ("tdx.xfam", {"xfam": bytes.fromhex("ef02060000000000")}),
    "XFAM bit 63": ("tdx.xfam", {"xfam": bytes.fromhex("e702060000000080")}),
    "SEAMATTRIBUTES": ("tdx.seam", {"seam_attributes": b"\1" + bytes(7)}),
    "MRSIGNERSEAM": ("tdx.seam", {"mrsigner_seam": bytes(47) + b"\1"}),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_production_td_is_refused_when_unfit(case: str) -> None:
    code, fields = UNFIT[case]
    body = replace(TdBody.parse(BODY, 2), **fields)
    with pytest.raises(AppraisalRefused) as refused:
        require_production(body)
    assert refused.value.code == code


@pytest.mark.parametrize(("at", "size"), [(600, 48), (729, 48), (829, 48)])
def test_production_td_is_refused_when_a_service_td_is_bound(at: int, size: int) -> None:
    raw = patched(BODY + BODY[:16] + bytes(285), at, b"\1" * size)
    with pytest.raises(AppraisalRefused) as refused:
        require_production(TdBody.parse(raw, 4))
    assert refused.value.code == "tdx.service-td"


def test_body_names_its_attributes_when_asked() -> None:
    body = TdBody.parse(td_body(td_attributes=bits(0, 29)), 2)
    assert (body.debug, body.migratable, body.sept_ve_disable) == (True, True, True)
