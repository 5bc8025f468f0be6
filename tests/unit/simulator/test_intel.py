"""The simulated Intel PKI verifies with the production library once the anchor is its root, and only then."""

import json

import pytest

from antechamber.simulator.intel import DEBUG_TD, CollateralKnobs, IntelPki, td_body

dcap_qvl = pytest.importorskip("dcap_qvl")
NOW = 1_790_000_000
PKI = IntelPki(NOW, seed=bytes(32))


def verify(quote: bytes, collateral: dict[str, str], root: bytes = PKI.root_der) -> str:
    parsed = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(collateral))
    return str(dcap_qvl.verify_with_root_ca(quote, parsed, root, NOW).status)


@pytest.mark.parametrize("body_type", [2, 3, 4])
def test_pki_verifies_quote_version_5(body_type: int) -> None:
    assert verify(PKI.quote_v5(td_body(), body_type), PKI.collateral()) == "UpToDate"


def test_pki_verifies_across_processes_when_the_seed_is_the_same() -> None:
    again = IntelPki(NOW, seed=bytes(32))
    assert again.root_der == PKI.root_der
    assert verify(again.quote_v4(td_body()), PKI.collateral()) == "UpToDate"


def test_pki_is_refused_when_the_anchor_is_another() -> None:
    with pytest.raises(ValueError, match="root CA CRL"):
        verify(PKI.quote_v4(td_body()), PKI.collateral(), IntelPki(NOW).root_der)


@pytest.mark.parametrize(
    ("knobs", "seen"),
    [
        ({"days": -1}, "CrlExpired"),
        ({"tcb_status": "Revoked"}, "Revoked"),
        ({"revoke_pck": True}, "CertRevoked"),
        ({"revoke_pck_ca": True}, "CertRevoked"),
        ({"fmspc": "000000000000"}, "Fmspc"),
        ({"tdx_svn": [9] * 16}, "No matching TCB level"),
    ],
)
def test_collateral_refuses_when_a_knob_is_turned(knobs: CollateralKnobs, seen: str) -> None:
    with pytest.raises(ValueError, match=seen):
        verify(PKI.quote_v4(td_body()), PKI.collateral(**knobs))


@pytest.mark.parametrize("knob", ["tcb_status", "qe_status", "module_status"])
def test_collateral_says_the_status_when_a_knob_is_turned(knob: str) -> None:
    knobs: CollateralKnobs = {knob: "OutOfDate"}  # type: ignore[misc]
    assert verify(PKI.quote_v4(td_body()), PKI.collateral(**knobs)) == "OutOfDate"


def test_quote_is_refused_when_the_td_is_debug() -> None:
    with pytest.raises(ValueError, match="Debug"):
        verify(PKI.quote_v4(td_body(td_attributes=DEBUG_TD)), PKI.collateral())


def test_td_body_refuses_when_a_field_has_another_size() -> None:
    with pytest.raises(ValueError, match="584"):
        td_body(report_data=bytes(63))
