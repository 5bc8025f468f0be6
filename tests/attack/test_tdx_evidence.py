"""One test a threat against TDX Evidence and its collateral: each is refused, by its code."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from antechamber.errors import AgentError
from antechamber.evidence import eventlog, initdata
from antechamber.evidence.anchors import NVIDIA_ROOT_SPKI, Anchors
from antechamber.evidence.chain import verify_quote
from antechamber.evidence.collateral import TdxCollateral, open_collateral, seal_collateral
from antechamber.evidence.eventlog import AaelEvent
from antechamber.evidence.tdx import Quote, TdBody, require_production
from antechamber.simulator.intel import DEBUG_TD, IntelPki, td_body
from antechamber.simulator.sgx import Platform

NOW = 1_790_000_000
PKI = IntelPki(NOW, seed=bytes(32))
ANCHORS = Anchors(PKI.root_der, NVIDIA_ROOT_SPKI)
VENDORS = Anchors(None, NVIDIA_ROOT_SPKI)
HEALTHY = PKI.collateral()
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
SIGNER = KEY.public_key().public_bytes_raw()
NONCE = b"\5" * 32


def code_of(run: Callable[[], object]) -> str:
    with pytest.raises(AgentError) as refused:
        run()
    return refused.value.code


def verify(raw: bytes, collateral: dict[str, str], anchors: Anchors = ANCHORS) -> object:
    return verify_quote(Quote.parse(raw), TdxCollateral.build(collateral), anchors, NOW)


def test_debug_td_is_refused_though_its_quote_is_well_signed() -> None:
    quote = PKI.quote_v4(td_body(td_attributes=DEBUG_TD))
    assert code_of(lambda: require_production(Quote.parse(quote).body)) == "tdx.debug"
    assert code_of(lambda: verify(quote, HEALTHY)) == "tdx.debug"


def test_simulated_quote_is_refused_when_the_anchor_is_intels() -> None:
    assert code_of(lambda: verify(PKI.quote_v4(td_body()), HEALTHY, VENDORS)) == "quote.anchor"


def test_look_alike_intel_is_refused_when_only_the_names_match() -> None:
    rogue = IntelPki(NOW)  # the same subject names, other keys
    assert code_of(lambda: verify(rogue.quote_v4(td_body()), rogue.collateral())) == "quote.anchor"


def test_root_swapped_into_a_foreign_chain_is_refused() -> None:
    quote = Quote.parse(IntelPki(NOW).quote_v4(td_body()))
    mixed = quote.pck_chain[: quote.pck_chain.rindex(b"-----BEGIN")] + PKI.root_pem.encode()
    forged = replace(quote, pck_chain=mixed)
    with pytest.raises(AgentError, match="not issued by the next") as refused:
        verify_quote(forged, TdxCollateral.build(HEALTHY), ANCHORS, NOW)
    assert refused.value.code == "quote.chain"


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity"])
def test_collateral_signed_by_an_extracted_pck_key_is_refused(part: str) -> None:
    """dcap-qvl accepts it: any end entity under the root may sign. One extracted PCK would forge every TCB status."""
    forged = PKI.collateral(tcb_signer="pck")
    mixed = HEALTHY | {key: value for key, value in forged.items() if key.startswith(part)}
    assert code_of(lambda: verify(PKI.quote_v4(td_body()), mixed)) == "collateral.role"


def test_collateral_of_another_pce_is_refused() -> None:
    other = IntelPki(NOW, seed=bytes(32), platform=replace(PKI.platform, pce_id=b"\1\0"))
    assert code_of(lambda: verify(other.quote_v4(td_body()), HEALTHY)) == "collateral.pce-id"


def test_collateral_of_another_platform_family_is_refused() -> None:
    platform = Platform(ppid=bytes(16), instance=bytes(16), fmspc=bytes.fromhex("90c06f000000"))
    other = IntelPki(NOW, seed=bytes(32), platform=platform)
    assert code_of(lambda: verify(other.quote_v4(td_body()), HEALTHY)) == "collateral.fmspc"


def test_pck_chain_in_collateral_is_never_used_instead_of_the_quotes() -> None:
    """dcap-qvl prefers it where it is given: whoever sends collateral would choose the platform."""
    rogue, quote = IntelPki(NOW).quote_v4(td_body()), PKI.quote_v4(td_body())
    ours, theirs = (HEALTHY | {"pck_certificate_chain": Quote.parse(raw).pck_chain.decode()} for raw in (quote, rogue))
    assert code_of(lambda: verify(rogue, ours)) == "quote.anchor"
    assert verify(quote, theirs) == verify(quote, HEALTHY)


def test_revoked_platform_is_refused() -> None:
    assert code_of(lambda: verify(PKI.quote_v4(td_body()), PKI.collateral(revoke_pck=True))) == "quote.revoked"


def test_measurements_changed_after_signing_are_refused() -> None:
    quote = PKI.quote_v4(td_body())
    forged = quote.replace(b"\x11" * 48, b"\x12" * 48, 1)
    assert code_of(lambda: verify(forged, HEALTHY)) == "quote.signature"


def test_report_data_swapped_from_another_quote_is_refused() -> None:
    mine, theirs = (PKI.quote_v4(td_body(report_data=bytes([n]) * 64)) for n in (1, 2))
    assert code_of(lambda: verify(mine[:568] + theirs[568:632] + mine[632:], HEALTHY)) == "quote.signature"


def test_payload_smuggled_behind_a_quote_is_refused() -> None:
    assert code_of(lambda: Quote.parse(PKI.quote_v4(td_body()) + bytes(64) + b"payload")) == "quote.tail"


def test_state_component_unknown_to_tdx_is_refused_though_dcap_accepts_it() -> None:
    quote = PKI.quote_v4(td_body(xfam=(0x0602E7 | 1 << 20).to_bytes(8, "little")))
    verify(quote, HEALTHY)
    assert code_of(lambda: require_production(Quote.parse(quote).body)) == "tdx.xfam"


def test_service_td_hidden_in_an_extended_body_is_refused_though_dcap_accepts_it() -> None:
    quote = PKI.quote_v5(td_body(), 4, extra=bytes(81) + b"\1" * 48 + bytes(108))
    verify(quote, HEALTHY)
    assert code_of(lambda: require_production(Quote.parse(quote).body)) == "tdx.service-td"


# -- the event log

EVENTS = tuple(AaelEvent(eventlog.DOMAIN, operation, "sha384:00") for operation in eventlog.ORDER)


def body_after(events: tuple[AaelEvent, ...]) -> TdBody:
    log = eventlog.compose_log(None, b"".join(e.encode() for e in events))
    return TdBody.parse(td_body(rtmr=eventlog.replay(eventlog.parse_log(log))), 2)


def parsed(*records: bytes) -> tuple[eventlog.Event, ...]:
    return eventlog.parse_log(eventlog.compose_log(None, b"".join(records)))


def test_extend_that_was_never_logged_is_refused() -> None:
    hidden = body_after((*EVENTS, AaelEvent("x", "y", "z")))
    assert code_of(lambda: eventlog.require_replay(parsed(*(e.encode() for e in EVENTS)), hidden)) == "eventlog.replay"


def test_event_left_out_of_the_log_is_refused() -> None:
    records = [e.encode() for e in EVENTS]
    assert code_of(lambda: eventlog.require_replay(parsed(*records[:-1]), body_after(EVENTS))) == "eventlog.replay"


def test_events_in_another_order_are_refused() -> None:
    records = [e.encode() for e in reversed(EVENTS)]
    assert code_of(lambda: eventlog.require_replay(parsed(*records), body_after(EVENTS))) == "eventlog.replay"


def test_event_text_changed_under_an_honest_digest_is_refused() -> None:
    """The registers still replay: only the rule that ties a text to its digest catches it."""
    records = [e.encode() for e in EVENTS]
    model = eventlog.ORDER.index("model")
    records[model] = records[model].replace(b"sha384:00", b"sha384:01")
    events = parsed(*records)
    eventlog.require_replay(events, body_after(EVENTS))
    assert code_of(lambda: eventlog.runtime_events(events)) == "eventlog.digest"


def test_event_that_extends_nothing_is_refused_in_rtmr3() -> None:
    """EV_NO_ACTION replays as nothing, so its text proves nothing."""
    ghost = AaelEvent(eventlog.DOMAIN, "model", "sha384:ff").encode()
    ghost = ghost[:4] + b"\3" + ghost[5:]
    events = parsed(ghost, *(e.encode() for e in EVENTS))
    eventlog.require_replay(events, body_after(EVENTS))
    assert code_of(lambda: eventlog.runtime_events(events)) == "eventlog.foreign"


def test_second_separator_is_refused() -> None:
    separator = b"\1\0\0\0\4\0\0\0\1\0\0\0\x0c\0" + bytes(48) + b"\4\0\0\0" + bytes(4)
    assert code_of(lambda: parsed(separator, separator)) == "eventlog.separator"


def test_records_hidden_behind_the_padding_are_refused() -> None:
    log = eventlog.compose_log(None, EVENTS[0].encode()) + EVENTS[1].encode()
    assert code_of(lambda: eventlog.parse_log(log)) == "eventlog.tail"


# -- collateral and time


def sealed(*, time: int = NOW, nonce: bytes = NONCE, key: Ed25519PrivateKey = KEY) -> bytes:
    return seal_collateral([TdxCollateral.build(HEALTHY)], time=time, nonce=nonce, key=key)


def open_(envelope: bytes) -> object:
    return open_collateral(envelope, SIGNER, nonce=NONCE, floor=NOW)


def test_collateral_of_a_foreign_signer_is_refused() -> None:
    assert code_of(lambda: open_(sealed(key=Ed25519PrivateKey.generate()))) == "collateral.signature"


def test_collateral_replayed_from_another_boot_is_refused() -> None:
    assert code_of(lambda: open_(sealed(nonce=b"\6" * 32))) == "collateral.nonce"
    assert code_of(lambda: open_(sealed(nonce=b""))) == "collateral.nonce"


def test_time_rolled_back_below_the_floor_is_refused() -> None:
    assert code_of(lambda: open_(sealed(time=NOW - 1))) == "collateral.time"


def test_payload_signed_for_another_purpose_is_refused() -> None:
    envelope = json.loads(sealed())
    envelope["payloadType"] = "application/vnd.in-toto+json"
    assert code_of(lambda: open_(json.dumps(envelope).encode())) == "collateral.type"


def test_time_changed_under_an_honest_signature_is_refused() -> None:
    later = json.loads(sealed(time=NOW + 1))
    later["signatures"] = json.loads(sealed())["signatures"]
    assert code_of(lambda: open_(json.dumps(later).encode())) == "collateral.signature"


# -- init-data


def init_data(settings: str) -> bytes:
    return f"""version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"antechamber.toml" = '{settings}'\n""".encode()


def test_init_data_that_the_td_was_not_started_with_is_refused() -> None:
    started_with = initdata.mr_config_id(init_data('MODEL_NAME = "a"'))
    assert code_of(lambda: initdata.require_bound(init_data('MODEL_NAME = "b"'), started_with)) == "initdata.digest"


def test_tls_outside_the_enclave_is_refused_though_well_bound() -> None:
    text = init_data("TLS_INSIDE_ENCLAVE = false")
    assert code_of(lambda: initdata.require_bound(text, bytes(48))) == "initdata.tls"


@pytest.mark.parametrize("key", ["trust", "COLLATERAL_SIGNER", "guest", "engine"])
def test_host_that_sets_more_than_it_may_is_refused(key: str) -> None:
    assert code_of(lambda: initdata.require_bound(init_data(f'{key} = "x"'), bytes(48))) == "initdata.key"
