"""A quote goes through dcap-qvl once: its claims refuse whatever its `verify` refuses, or a second pass was needed."""

from collections.abc import Callable
from typing import Any

import dcap_qvl
import pytest

from antechamber.evidence.collateral import TdxCollateral
from antechamber.simulator.intel import IntelPki, td_body

NOW = 1_790_000_000
PKI = IntelPki(NOW, seed=bytes(32))
DAY = 86_400
HEALTHY = PKI.collateral()
QUOTES = {
    "version 4": PKI.quote_v4(td_body()),
    "version 5": PKI.quote_v5(td_body(), 3),
    "extended": PKI.quote_v5(td_body(), 4),
}
KNOBS: list[dict[str, Any]] = [
    *({"tcb_status": status} for status in ("UpToDate", "OutOfDate", "Revoked", "Nonsense")),
    *({"qe_status": status} for status in ("OutOfDate", "Revoked", "Nonsense")),
    *({"module_status": status} for status in ("OutOfDate", "Revoked", "Nonsense")),
    *({"tcb_signer": signer} for signer in ("pck", "pck-ca", "root", "under-pck-ca")),
    {"days": -1}, {"now": NOW + 9 * DAY}, {"fmspc": "112233445566"}, {"pce_id": "0001"}, {"revoke_pck": True},
    {"revoke_pck_ca": True}, {"tdx_svn": [255] * 16}, {"qe_product": 3}, {"qe_signer": bytes(32)}, {"qe_misc": 1},
    {"qe_attributes": bytes([0x13]) + bytes(15)}, {"modules": ["TDX_03"]}, {"modules": []}, {"newer_svn": 9},
]  # fmt: skip


def holds(run: Callable[[], object]) -> bool:
    try:
        run()
    except (ValueError, OverflowError):
        return False
    return True


def agree(raw: bytes, collateral: dict[str, str] = HEALTHY, now: int = NOW) -> bool:
    """Whether it holds; both ways must say so."""
    parsed, root = dcap_qvl.QuoteCollateralV3.from_json(TdxCollateral.build(collateral).text), PKI.root_der
    claims = dcap_qvl.QuotePolicy.claims_only(now)
    once = holds(lambda: dcap_qvl.QuoteVerifier(root).verify_with_policy(raw, parsed, now, claims))
    assert once == holds(lambda: dcap_qvl.verify_with_root_ca(raw, parsed, root, now))
    return once


@pytest.mark.parametrize("kind", QUOTES)
def test_claims_agree_with_verify_on_a_quote_with_a_bit_changed(kind: str) -> None:
    raw = QUOTES[kind]
    assert agree(raw)
    held = [agree(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]) for at in range(0, len(raw), 11)]
    assert held.count(False) > len(held) * 3 // 4


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_claims_agree_with_verify_on_collateral(knobs: dict[str, Any]) -> None:
    for now in (NOW - 2 * DAY, NOW, NOW + 29 * DAY, NOW + 31 * DAY):
        agree(QUOTES["version 4"], PKI.collateral(**knobs), now)


@pytest.mark.parametrize("bit", range(64))
def test_claims_agree_with_verify_on_td_attributes(bit: int) -> None:
    body = td_body(td_attributes=(1 << 28 ^ 1 << bit).to_bytes(8, "little"))
    agree(PKI.quote_v4(body))
    agree(PKI.quote_v5(body, 3))
