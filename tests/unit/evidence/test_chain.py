"""Quotes of the simulated Intel: what verifies, what the verdict says, and each reason to refuse."""

import json
import ssl
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antechamber.errors import AgentError, ConfigError, MalformedEvidence
from antechamber.evidence.anchors import NVIDIA_ROOT_SPKI, Anchors
from antechamber.evidence.chain import TdxVerdict, fmspc_of, verify_quote
from antechamber.evidence.collateral import TdxCollateral
from antechamber.evidence.tdx import Quote
from antechamber.simulator.intel import SEPT_VE_DISABLE, IntelPki, td_body

NOW = 1_790_000_000
PKI = IntelPki(NOW, seed=bytes(32))
ANCHORS = Anchors(PKI.root_der, NVIDIA_ROOT_SPKI)
QUOTE = PKI.quote_v4(td_body())
HEALTHY = PKI.collateral()


def verify(raw: bytes = QUOTE, collateral: dict[str, str] = HEALTHY, *, now: int = NOW) -> TdxVerdict:
    return verify_quote(Quote.parse(raw), TdxCollateral.build(collateral), ANCHORS, now)


def code_of(run: Callable[[], object]) -> str:
    with pytest.raises(AgentError) as refused:
        run()
    return refused.value.code


def flipped(at: int, raw: bytes = QUOTE) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def broken(key: str) -> dict[str, str]:
    """One nibble of a hex member changed, near its end: inside the signature."""
    text = HEALTHY[key]
    return HEALTHY | {key: text[:-9] + ("0" if text[-9] != "0" else "1") + text[-8:]}


@pytest.mark.parametrize("kind", [None, 2, 3, 4])
def test_quote_verifies_when_healthy(kind: int | None) -> None:
    verdict = verify(QUOTE if kind is None else PKI.quote_v5(td_body(), kind))
    assert verdict.tcb_status == "UpToDate"
    assert verdict.advisory_ids == ()
    assert (verdict.tcb_eval, verdict.fmspc) == (20, "00806F050000")
    assert verdict.anchor == f"simulated:{verdict.root_key_id.hex()[:12]}"
    assert verdict.earliest_expiration == NOW + 30 * 86_400
    assert (verdict.ppid, verdict.platform_instance) == (PKI.platform.ppid.hex(), PKI.platform.instance.hex())


def test_quote_verifies_when_it_was_zero_padded() -> None:
    assert verify(QUOTE + bytes(3064)) == verify()


@pytest.mark.parametrize(
    "status",
    [
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
    ],
)
def test_verdict_carries_the_status_for_policy_to_judge(status: str) -> None:
    verdict = verify(collateral=PKI.collateral(tcb_status=status, advisories=["INTEL-SA-00001", "INTEL-SA-00002"]))
    assert (verdict.tcb_status, verdict.advisory_ids) == (status, ("INTEL-SA-00001", "INTEL-SA-00002"))


@pytest.mark.parametrize("knobs", [{"qe_status": "OutOfDate"}, {"module_status": "OutOfDate"}], ids=str)
def test_verdict_is_out_of_date_when_only_the_qe_or_the_module_is(knobs: dict[str, Any]) -> None:
    assert verify(collateral=PKI.collateral(**knobs)).tcb_status == "OutOfDate"


def test_verdict_has_the_older_evaluation_number_when_the_two_differ() -> None:
    old = PKI.collateral(eval_number=12)
    mixed = HEALTHY | {k: v for k, v in old.items() if k.startswith("qe_identity")}
    assert verify(collateral=mixed).tcb_eval == 12


def test_fmspc_of_reads_the_pck() -> None:
    assert fmspc_of(Quote.parse(QUOTE)) == PKI.fmspc


def test_fmspc_of_is_refused_when_the_leaf_is_no_pck() -> None:
    quote = Quote.parse(QUOTE)
    root = PKI.root_pem.encode()
    assert code_of(lambda: fmspc_of(replace(quote, pck_chain=root))) == "quote.pck"
    with pytest.raises(MalformedEvidence):
        fmspc_of(replace(quote, pck_chain=b""))


BODY = td_body()
ATTRIBUTES = int.from_bytes(SEPT_VE_DISABLE, "little")


def with_attributes(number: int) -> bytes:
    return PKI.quote_v4(td_body(td_attributes=(number).to_bytes(8, "little")))


QUOTES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "body": ("quote.signature", lambda: flipped(48 + 136)),
    "header's QE ID": ("quote.signature", lambda: flipped(30)),
    "signature": ("quote.signature", lambda: flipped(636)),
    "attestation key": ("quote.signature", lambda: flipped(636 + 64)),
    "QE report": ("quote.signature", lambda: flipped(636 + 128 + 6)),
    "QE signature": ("quote.signature", lambda: flipped(636 + 128 + 6 + 384)),
    "QE authentication data": ("quote.signature", lambda: flipped(636 + 128 + 6 + 384 + 64 + 2)),
    "another platform's PKI": ("quote.anchor", lambda: IntelPki(NOW).quote_v4(BODY)),
    "debug": ("tdx.debug", lambda: with_attributes(ATTRIBUTES | 1)),
    "profiling": ("tdx.profiling", lambda: with_attributes(ATTRIBUTES | 1 << 4)),
    "migratable": ("tdx.migratable", lambda: with_attributes(ATTRIBUTES | 1 << 29)),
    "service TD": ("tdx.service-td", lambda: with_attributes(ATTRIBUTES | 1 << 17)),
    "MRSERVICETD": ("tdx.service-td", lambda: PKI.quote_v5(BODY, mr_servicetd=b"\1" * 48)),
    "reserved": ("tdx.attributes", lambda: with_attributes(ATTRIBUTES | 1 << 9)),
    "no SEPT_VE_DISABLE": ("tdx.sept-ve", lambda: with_attributes(0)),
    "SEAMATTRIBUTES": ("tdx.seam", lambda: PKI.quote_v4(td_body(seam_attributes=b"\1" * 8))),
    "MRSIGNERSEAM": ("tdx.seam", lambda: PKI.quote_v4(td_body(mrsigner_seam=b"\1" * 48))),
    "module SVN": ("quote.tcb-level", lambda: PKI.quote_v4(td_body(tee_tcb_svn=bytes([4, 1, 3, *[0] * 13])))),
    "unknown module": ("quote.tcb-level", lambda: PKI.quote_v4(td_body(tee_tcb_svn=bytes([5, 9, 3, *[0] * 13])))),
}


@pytest.mark.parametrize("case", QUOTES)
def test_quote_is_refused_when_it_does_not_verify(case: str) -> None:
    code, raw = QUOTES[case]
    assert code_of(lambda: verify(raw())) == code


@given(st.integers(0, len(QUOTE) - 1), st.integers(1, 255))
def test_quote_is_refused_with_any_changed_byte(at: int, flip: int) -> None:
    code_of(lambda: verify(QUOTE[:at] + bytes([QUOTE[at] ^ flip]) + QUOTE[at + 1 :]))


@given(st.sampled_from(sorted(set(HEALTHY) - {"pck_crl_issuer_chain"})), st.data())
def test_quote_is_refused_with_any_changed_character_of_collateral(key: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(HEALTHY[key]) - 1))
    character = data.draw(st.characters(codec="ascii"))
    changed = HEALTHY[key][:at] + character + HEALTHY[key][at + 1 :]
    if changed.lower().split() != HEALTHY[key].lower().split():  # hex may be of either case, PEM lines end otherwise
        code_of(lambda: verify(collateral=HEALTHY | {key: changed}))


@pytest.mark.parametrize(
    ("read", "changed"),
    [
        # pyca raises InvalidVersion and TypeError for these, and neither is a ValueError.
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09"),
        (b"\x55\x04\x03\x0c\x11I", b"\x55\x04\x03\x03\x11\0"),
    ],
    ids=["version 10", "BIT STRING name"],
)
def test_quote_is_refused_when_a_certificate_cannot_be_read(read: bytes, changed: bytes) -> None:
    root = ssl.PEM_cert_to_DER_cert(PKI.root_pem)
    strange = ssl.DER_cert_to_PEM_cert(root.replace(read, changed))
    collateral = HEALTHY | {"tcb_info_issuer_chain": HEALTHY["tcb_info_issuer_chain"].replace(PKI.root_pem, strange)}
    assert code_of(lambda: verify(collateral=collateral)) == "collateral.chain"


COLLATERALS: dict[str, tuple[str, Callable[[], dict[str, str]]]] = {
    "expired": ("collateral.expired", lambda: PKI.collateral(days=-1)),
    "TCB revoked": ("quote.revoked", lambda: PKI.collateral(tcb_status="Revoked")),
    "QE revoked": ("quote.revoked", lambda: PKI.collateral(qe_status="Revoked")),
    "module revoked": ("quote.revoked", lambda: PKI.collateral(module_status="Revoked")),
    "PCK revoked": ("quote.revoked", lambda: PKI.collateral(revoke_pck=True)),
    "PCK CA revoked": ("quote.revoked", lambda: PKI.collateral(revoke_pck_ca=True)),
    "no TCB level": ("quote.tcb-level", lambda: PKI.collateral(tdx_svn=[5, 0, 4, *[0] * 13])),
    "FMSPC": ("collateral.fmspc", lambda: PKI.collateral(fmspc="90C06F000000")),
    "PCE": ("collateral.pce-id", lambda: PKI.collateral(pce_id="0001")),
    "another root's": ("collateral.anchor", lambda: IntelPki(NOW).collateral()),
    "root CRL": ("collateral.signature", lambda: broken("root_ca_crl")),
    "PCK CRL": ("collateral.signature", lambda: broken("pck_crl")),
    "TCB info signature": ("collateral.signature", lambda: broken("tcb_info_signature")),
    "QE identity signature": ("collateral.signature", lambda: broken("qe_identity_signature")),
    "TCB info": (
        "collateral.signature",
        lambda: PKI.collateral(tcb_status="OutOfDate")
        | {k: HEALTHY[k] for k in ("tcb_info_signature",)},
    ),
    "CRL of another CA": ("collateral.revocation", lambda: HEALTHY | {"pck_crl": HEALTHY["root_ca_crl"]}),
    "no chain": ("collateral.chain", lambda: HEALTHY | {"tcb_info_issuer_chain": ""}),
    "root alone": ("collateral.role", lambda: HEALTHY | {"tcb_info_issuer_chain": PKI.root_pem}),
    "garbage chain": (
        "collateral.chain",
        lambda: HEALTHY
        | {"tcb_info_issuer_chain": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
    ),
    "TCB info of SGX": (
        "collateral.signature",
        lambda: HEALTHY | {"tcb_info": json.dumps(json.loads(HEALTHY["tcb_info"]) | {"id": "SGX"})},
    ),
    "TCB info without levels": (
        "collateral.kind",
        lambda: HEALTHY
        | {"tcb_info": json.dumps({k: v for k, v in json.loads(HEALTHY["tcb_info"]).items() if k != "tcbLevels"})},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COLLATERALS)
def test_quote_is_refused_when_the_collateral_does_not_hold(case: str) -> None:
    code, collateral = COLLATERALS[case]
    assert code_of(lambda: verify(collateral=collateral())) == code


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (NOW + 31 * 86_400, "collateral.expired"),
        (NOW - 2 * 86_400, "collateral.early"),
        (0, "collateral.early"),
        (-1, "collateral.early"),
    ],
)
def test_quote_is_refused_when_the_time_is_outside_the_collateral(now: int, code: str) -> None:
    assert code_of(lambda: verify(now=now)) == code


def test_quote_is_refused_when_its_certificates_expired() -> None:
    collateral = PKI.collateral(days=5000)
    assert code_of(lambda: verify(collateral=collateral, now=NOW + 4000 * 86_400)) == "quote.chain-expired"


def test_quote_is_refused_when_tcb_info_has_another_type() -> None:
    collateral = replace(TdxCollateral.build(HEALTHY), tcb_type=1)
    assert code_of(lambda: verify_quote(Quote.parse(QUOTE), collateral, ANCHORS, NOW)) == "collateral.tcb-type"


def test_install_is_refused_when_dcap_qvl_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dcap_qvl", None)  # as on a guest without the extra
    with pytest.raises(ConfigError) as refused:
        verify()
    assert refused.value.code == "install.dcap-qvl"
