"""The signed collateral-and-time bundle: opened only if the pinned signer signed exactly these bytes."""

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from antechamber.errors import AgentError, AppraisalRefused, MalformedEvidence
from antechamber.evidence.collateral import (
    PAYLOAD_TYPE,
    Collateral,
    TdxCollateral,
    key_id,
    open_collateral,
    seal_collateral,
)
from antechamber.simulator.intel import IntelPki

NOW = 1_790_000_000
NONCE = bytes(range(32))
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
OTHER = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
SIGNER = KEY.public_key().public_bytes_raw()
PKI = IntelPki(NOW, seed=bytes(32))
SET = PKI.collateral()
TDX = TdxCollateral.build(SET)


def seal(*, time: int = NOW, nonce: bytes = NONCE, key: Ed25519PrivateKey = KEY) -> dict[str, Any]:
    sealed: dict[str, Any] = json.loads(seal_collateral([TDX], time=time, nonce=nonce, key=key))
    return sealed


def opened(envelope: object, *, nonce: bytes | None = NONCE, floor: int = NOW) -> Collateral:
    raw = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
    return open_collateral(raw, SIGNER, nonce=nonce, floor=floor)


def code_of(run: Callable[[], object]) -> str:
    with pytest.raises(AgentError) as refused:
        run()
    return refused.value.code


def signed(payload: object) -> dict[str, Any]:
    """An envelope over any payload by the right key: what a broken broker might send."""
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    pae = b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(raw), raw)
    signature = base64.b64encode(KEY.sign(pae)).decode()
    payload_text = base64.b64encode(raw).decode()
    return {"payloadType": PAYLOAD_TYPE, "payload": payload_text, "signatures": [{"sig": signature}]}


def test_envelope_opens_to_what_was_sealed() -> None:
    collateral = opened(seal())
    assert collateral == Collateral(NOW, NONCE, (TDX,))
    assert collateral.for_fmspc("00806f050000") is collateral.tdx[0]


def test_envelope_is_dsse_when_written_out_by_hand() -> None:
    assert opened(signed({"version": 1, "time": NOW, "nonce": NONCE.hex(), "tdx": [SET]})) == opened(seal())
    assert seal()["signatures"][0]["keyid"] == key_id(SIGNER)


def test_envelope_opens_for_anyone_when_no_nonce_is_asked() -> None:
    assert opened(seal(nonce=b""), nonce=None).nonce == b""


def test_envelope_opens_when_one_of_several_signatures_is_the_signers() -> None:
    envelope = seal()
    envelope["signatures"] = seal(key=OTHER)["signatures"] + envelope["signatures"]
    assert opened(envelope).time == NOW
    envelope["signatures"] = envelope["signatures"][:1] * 2
    assert code_of(lambda: opened(envelope)) == "collateral.signature"


def test_keyid_decides_nothing_when_it_is_wrong() -> None:
    envelope = seal()
    envelope["signatures"][0]["keyid"] = "nobody"
    assert opened(envelope).time == NOW
    forged = seal(key=OTHER)
    forged["signatures"][0]["keyid"] = key_id(SIGNER)
    assert code_of(lambda: opened(forged)) == "collateral.signature"


@pytest.mark.parametrize("signer", [b"", bytes(31), bytes(33)], ids=len)
def test_envelope_is_refused_when_the_pinned_signer_is_no_key(signer: bytes) -> None:
    raw = json.dumps(seal()).encode()
    assert code_of(lambda: open_collateral(raw, signer, nonce=None, floor=0)) == "collateral.signature"


@pytest.mark.parametrize(
    ("envelope", "code"),
    [
        (b"", "collateral.json"),
        (b'{"payload":"","payload":""}', "collateral.json"),
        (b"[]", "collateral.envelope"),
        ({"payloadType": PAYLOAD_TYPE, "payload": ""}, "collateral.envelope"),
        (seal() | {"extra": 1}, "collateral.envelope"),
        (seal() | {"payloadType": "application/json"}, "collateral.type"),
        (seal() | {"payloadType": 1}, "collateral.type"),
        (seal() | {"payload": 1}, "collateral.envelope"),
        (seal() | {"payload": "#"}, "collateral.envelope"),
        (seal() | {"payload": base64.b64encode(b"{}").decode()}, "collateral.signature"),
        (seal() | {"signatures": []}, "collateral.envelope"),
        (seal() | {"signatures": seal()["signatures"] * 9}, "collateral.envelope"),
        (seal() | {"signatures": [{"sig": "AA==", "cert": ""}]}, "collateral.envelope"),
        (seal() | {"signatures": [{"keyid": "x"}]}, "collateral.envelope"),
        (seal() | {"signatures": [{"sig": 1}]}, "collateral.envelope"),
        (seal() | {"signatures": [{"sig": "AA==", "keyid": 1}]}, "collateral.envelope"),
        (seal() | {"signatures": [{"sig": "AA=="}]}, "collateral.signature"),
        (signed(b"no json"), "collateral.json"),
        (signed([]), "collateral.payload"),
        (signed({"version": True, "time": NOW, "nonce": "", "tdx": []}), "collateral.payload"),
        (signed({"version": 2, "time": NOW, "nonce": "", "tdx": []}), "collateral.payload"),
        (signed({"version": 1, "time": -1, "nonce": "", "tdx": []}), "collateral.payload"),
        (signed({"version": 1, "time": 1.5, "nonce": "", "tdx": []}), "collateral.payload"),
        (signed({"version": 1, "time": True, "nonce": "", "tdx": []}), "collateral.payload"),
        (signed({"version": 1, "time": NOW, "nonce": "a", "tdx": []}), "collateral.payload"),
        (signed({"version": 1, "time": NOW, "nonce": None, "tdx": []}), "collateral.payload"),
        (signed({"version": 1, "time": NOW, "nonce": "", "tdx": {}}), "collateral.payload"),
        (signed({"version": 1, "time": NOW, "nonce": "", "tdx": [SET, SET]}), "collateral.payload"),
        (signed({"version": 1, "time": NOW, "nonce": "", "tdx": [1]}), "collateral.shape"),
        (signed({"version": 1, "time": NOW, "nonce": "", "tdx": [], "more": 1}), "collateral.payload"),
    ],
)
def test_envelope_is_refused_when_malformed(envelope: object, code: str) -> None:
    assert code_of(lambda: opened(envelope)) == code


def test_fmspc_is_refused_when_no_set_is_for_it() -> None:
    assert code_of(lambda: opened(seal()).for_fmspc("90C06F000000")) == "collateral.fmspc"


def test_set_parses_to_its_properties() -> None:
    assert TdxCollateral.parse(json.dumps(SET)) == TDX
    assert (TDX.fmspc, TDX.pce_id, TDX.tcb_type, TDX.tcb_evaluation_data_number) == ("00806F050000", "0000", 0, 20)
    assert (TDX.issue_date, TDX.next_update) == (NOW - 86_400, NOW + 30 * 86_400)


def test_set_keeps_no_pck_chain_when_one_is_given() -> None:
    given_one = TdxCollateral.build(SET | {"pck_certificate_chain": SET["pck_crl_issuer_chain"]})
    assert given_one == TDX
    assert "pck_certificate_chain" not in given_one.text


def tcb(**change: object) -> dict[str, str]:
    return SET | {"tcb_info": json.dumps(json.loads(SET["tcb_info"]) | change)}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([], "collateral.shape"),
        ({k: v for k, v in SET.items() if k != "pck_crl"}, "collateral.shape"),
        (SET | {"more": "x"}, "collateral.shape"),
        (SET | {"pck_crl": 1}, "collateral.value"),
        (SET | {"pck_crl": ""}, "collateral.value"),
        (SET | {"pck_crl": "0"}, "collateral.value"),
        (SET | {"tcb_info_signature": "00" * 65}, "collateral.value"),
        (SET | {"tcb_info_issuer_chain": "text " + SET["tcb_info_issuer_chain"]}, "collateral.value"),
        (SET | {"tcb_info_issuer_chain": SET["tcb_info_issuer_chain"] * 10}, "collateral.value"),
        (SET | {"tcb_info": "[]"}, "collateral.value"),
        (SET | {"tcb_info": "{"}, "collateral.json"),
        (SET | {"tcb_info": SET["tcb_info"].replace("{", '{"fmspc":"000000000000",', 1)}, "collateral.json"),
        (tcb(fmspc="00806f05000"), "collateral.value"),
        (tcb(pceId=0), "collateral.value"),
        (tcb(tcbType=None), "collateral.value"),
        (tcb(tcbType=True), "collateral.value"),
        (tcb(tcbEvaluationDataNumber=-1), "collateral.value"),
        (tcb(issueDate="2026-01-01"), "collateral.value"),
        (tcb(nextUpdate=None), "collateral.value"),
    ],
)
def test_set_is_refused_when_malformed(value: object, code: str) -> None:
    assert code_of(lambda: TdxCollateral.parse(json.dumps(value))) == code


def test_set_takes_the_older_of_two_evaluation_numbers() -> None:
    old = PKI.collateral(eval_number=12)
    mixed = SET | {k: v for k, v in old.items() if k.startswith("qe_identity")}
    assert TdxCollateral.build(mixed).tcb_evaluation_data_number == 12


@given(st.binary(max_size=300))
def test_envelope_opens_or_refuses_any_bytes(raw: bytes) -> None:
    with suppress(MalformedEvidence, AppraisalRefused):
        open_collateral(raw, SIGNER, nonce=None, floor=0)


@given(st.binary(max_size=300))
def test_payload_opens_or_refuses_any_signed_bytes(raw: bytes) -> None:
    with suppress(MalformedEvidence, AppraisalRefused):
        opened(signed(raw), nonce=None, floor=0)


JSON_VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists, max_leaves=4)


@given(st.sampled_from(sorted(SET)), JSON_VALUES)
def test_set_parses_or_refuses_any_member(key: str, value: object) -> None:
    with suppress(MalformedEvidence):
        TdxCollateral.build(SET | {key: value})
