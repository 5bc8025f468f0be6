"""Every class that a quote verifier must refuse, by our own hand: the library is young, and a newer one may forget one.

Each line is one defect in Evidence that is well formed and well signed otherwise. `Ours` are those that dcap-qvl 0.7
lets pass. Source: Intel TDX DCAP Quoting Library API, appendix 3; Intel PCS API v4; Intel TDX Module ABI.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from antechamber.errors import AgentError, AppraisalRefused
from antechamber.evidence.anchors import NVIDIA_ROOT_SPKI, Anchors
from antechamber.evidence.chain import fmspc_of, verify_quote
from antechamber.evidence.collateral import Collateral, TdxCollateral
from antechamber.evidence.tdx import Quote, require_production
from antechamber.simulator.intel import IntelPki, td_body
from antechamber.simulator.sgx import Platform

dcap_qvl = pytest.importorskip("dcap_qvl")

DAY = 86_400
NOW = 1_790_000_000
PKI = IntelPki(NOW, seed=bytes(32))
ANCHORS = Anchors(PKI.root_der, NVIDIA_ROOT_SPKI)
ROGUE = IntelPki(NOW)  # the same names, other keys
HEALTHY, OLD, LATER = PKI.collateral(), PKI.collateral(days=-1), PKI.collateral(now=NOW + 9 * DAY)
BODY, FOREIGN_KEY = td_body(), ec.generate_private_key(ec.SECP256R1())
SEPT = 1 << 28


@dataclass(frozen=True)
class Case:
    """One defect, and the code that refuses it."""

    code: str
    quote: Callable[[], bytes] = lambda: PKI.quote_v4(BODY)
    collateral: Callable[[], dict[str, str]] = lambda: HEALTHY
    library: bool = True  # whether dcap-qvl refuses it too


class Ours(Case):
    """The library lets it pass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, library=False)


def body(**fields: bytes) -> Callable[[], bytes]:
    return lambda: PKI.quote_v4(td_body(**fields))


def attributes(value: int) -> Callable[[], bytes]:
    return body(td_attributes=value.to_bytes(8, "little"))


def xfam(value: int) -> Callable[[], bytes]:
    return body(xfam=value.to_bytes(8, "little"))


def quote(**knobs: Any) -> Callable[[], bytes]:
    return lambda: PKI.quote_v4(BODY, **knobs)


def changed(at: int) -> Callable[[], bytes]:
    raw = PKI.quote_v4(BODY)
    return lambda: raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def collateral(**knobs: Any) -> Callable[[], dict[str, str]]:
    return lambda: PKI.collateral(**knobs)


def taken(source: dict[str, str], *prefixes: str) -> Callable[[], dict[str, str]]:
    """Healthy, but for the members of another set."""
    return lambda: HEALTHY | {k: v for k, v in source.items() if k.startswith(prefixes)}


def of_platform(**changes: Any) -> Callable[[], bytes]:
    return lambda: IntelPki(NOW, seed=bytes(32), platform=replace(PKI.platform, **changes)).quote_v4(BODY)


def relaunch() -> bytes:
    """Launched under an old module, which was updated in place since."""
    return PKI.quote_v5(BODY, svn2=bytes([7, 1, 3, *[0] * 13]))


CASES: dict[str, Case] = {
    # revocation and CRLs
    "revoked PCK leaf": Case("quote.revoked", collateral=collateral(revoke_pck=True)),
    "revoked PCK CA": Case("quote.revoked", collateral=collateral(revoke_pck_ca=True)),
    "root CRL of a forger": Case("collateral.signature", collateral=taken(ROGUE.collateral(), "root_ca_crl")),
    "PCK CRL of a forger": Case("collateral.signature", collateral=taken(ROGUE.collateral(), "pck_crl")),
    "root CRL missing": Case("collateral.value", collateral=lambda: HEALTHY | {"root_ca_crl": ""}),
    "PCK CRL missing": Case("collateral.value", collateral=lambda: HEALTHY | {"pck_crl": ""}),
    "PCK CRL is the root's": Case(
        "collateral.revocation", collateral=lambda: HEALTHY | {"pck_crl": HEALTHY["root_ca_crl"]}
    ),
    "root CRL is the PCK CA's": Case(
        "collateral.signature", collateral=lambda: HEALTHY | {"root_ca_crl": HEALTHY["pck_crl"]}
    ),
    "root CRL over": Case("collateral.expired", collateral=taken(OLD, "root_ca_crl")),
    "PCK CRL over": Case("collateral.expired", collateral=taken(OLD, "pck_crl")),
    # collateral: time
    "TCB info over": Case("collateral.expired", collateral=taken(OLD, "tcb_info")),
    "QE identity over": Case("collateral.expired", collateral=taken(OLD, "qe_identity")),
    "TCB info not yet valid": Case("collateral.early", collateral=taken(LATER, "tcb_info")),
    "QE identity not yet valid": Case("collateral.early", collateral=taken(LATER, "qe_identity")),
    # collateral: whose
    "FMSPC of another family": Case("collateral.fmspc", collateral=collateral(fmspc="90C06F000000")),
    "PCE of another platform": Ours("collateral.pce-id", collateral=collateral(pce_id="0001")),
    "TCB info signed by the PCK leaf": Ours(
        "collateral.role", collateral=taken(PKI.collateral(tcb_signer="pck"), "tcb_info")
    ),
    "QE identity signed by the PCK leaf": Ours(
        "collateral.role", collateral=taken(PKI.collateral(tcb_signer="pck"), "qe_identity")
    ),
    "collateral signed by the PCK CA": Case("collateral.role", collateral=collateral(tcb_signer="pck-ca")),
    "collateral signed by the root": Case("collateral.role", collateral=collateral(tcb_signer="root")),
    "signer's name under the PCK CA": Ours("collateral.role", collateral=collateral(tcb_signer="under-pck-ca")),
    "collateral of a forger": Case(
        "collateral.anchor", collateral=taken(ROGUE.collateral(), "tcb_info", "qe_identity")
    ),
    "TCB info signature": Case("collateral.signature", collateral=lambda: HEALTHY | {"tcb_info_signature": "11" * 64}),
    "QE identity signature": Case(
        "collateral.signature", collateral=lambda: HEALTHY | {"qe_identity_signature": "11" * 64}
    ),
    "TCB info of SGX": Case(
        "collateral.signature",
        collateral=lambda: HEALTHY | {"tcb_info": HEALTHY["tcb_info"].replace('"TDX"', '"SGX"', 1)},
    ),
    # the Quoting Enclave
    "QE MRSIGNER": Case("quote.qe-identity", quote(qe_signer=b"\7" * 32)),
    "QE ISVPRODID": Case("quote.qe-identity", quote(qe_product=1)),
    "QE MISCSELECT": Case("quote.qe-identity", quote(qe_misc=1)),
    "QE ATTRIBUTES": Case("quote.qe-identity", quote(qe_attributes=bytes.fromhex("1400000000000000e700000000000000"))),
    "QE in debug mode": Case(
        "quote.qe-identity", quote(qe_attributes=bytes.fromhex("1700000000000000e700000000000000"))
    ),
    "QE of a level nobody certified": Case("quote.tcb-level", quote(qe_svn=3)),
    "QE status Revoked": Case("quote.revoked", collateral=collateral(qe_status="Revoked")),
    "QE report signature": Case("quote.signature", quote(qe_report_signer=FOREIGN_KEY)),
    "QE hash binding": Case("quote.signature", quote(qe_binding=b"\7" * 32)),
    "quote signature": Case("quote.signature", quote(attestation_signer=FOREIGN_KEY)),
    "measurement after signing": Case("quote.signature", changed(48 + 136)),
    "chain of a forger": Case("quote.anchor", lambda: ROGUE.quote_v4(BODY)),
    # TCB
    "no TCB level: TDX": Case("quote.tcb-level", collateral=collateral(tdx_svn=[5, 0, 4, *[0] * 13])),
    "no TCB level: microcode": Case("quote.tcb-level", of_platform(cpu_svn=bytes([4, 5, 2, 2, 3, 1, 0, 3, *[0] * 8]))),
    "no TCB level: PCE": Case("quote.tcb-level", of_platform(pce_svn=12)),
    "TCB status Revoked": Case("quote.revoked", collateral=collateral(tcb_status="Revoked")),
    "module status Revoked": Case("quote.revoked", collateral=collateral(module_status="Revoked")),
    "module below its levels": Case("quote.tcb-level", body(tee_tcb_svn=bytes([4, 1, 3, *[0] * 13]))),
    "module identity missing": Case("quote.tcb-level", collateral=collateral(modules=["TDX_03"])),
    "module identities missing": Case("quote.tcb-level", collateral=collateral(modules=[])),
    "status OutOfDate": Ours("appraisal.tcb-status", collateral=collateral(tcb_status="OutOfDate")),
    "status SWHardeningNeeded": Ours("appraisal.tcb-status", collateral=collateral(tcb_status="SWHardeningNeeded")),
    "status TDRelaunchAdvised": Ours("appraisal.tcb-status", relaunch, collateral(newer_svn=7)),
    "status OutOfDate after an update of the module": Ours("appraisal.tcb-status", collateral=collateral(newer_svn=7)),
    # the TDX module
    "MRSIGNERSEAM not zero": Case("tdx.seam", body(mrsigner_seam=b"\1" + bytes(47))),
    "SEAMATTRIBUTES not zero": Case("tdx.seam", body(seam_attributes=b"\1" + bytes(7))),
    # the TD
    "DEBUG": Case("tdx.debug", attributes(SEPT | 1)),
    **{f"profiling, bit {bit}": Case("tdx.profiling", attributes(SEPT | 1 << bit)) for bit in (4, 5, 6)},
    "MIGRATABLE": Case("tdx.migratable", attributes(SEPT | 1 << 29)),
    "SERVTD_EXT": Case("tdx.service-td", attributes(SEPT | 1 << 17)),
    "no SEPT_VE_DISABLE": Case("tdx.sept-ve", attributes(0)),
    "MRSERVICETD": Case("tdx.service-td", lambda: PKI.quote_v5(BODY, mr_servicetd=b"\1" + bytes(47))),
    "service TD at launch, in the extended body": Ours(
        "tdx.service-td", lambda: PKI.quote_v5(BODY, 4, extra=bytes(81) + b"\1" * 48 + bytes(108))
    ),
    "service TD now, in the extended body": Ours(
        "tdx.service-td", lambda: PKI.quote_v5(BODY, 4, extra=bytes(181) + b"\1" * 48 + bytes(8))
    ),
    **{f"reserved attribute, bit {bit}": Case("tdx.attributes", attributes(SEPT | 1 << bit))
       for bit in (1, 2, 3, 7, 8, 15, 23, 26, 32, 61)},
    **{f"attribute {name}": Ours("tdx.attributes", attributes(SEPT | 1 << bit))
       for name, bit in {"ICSSD": 16, "KL": 31, "TPA": 62}.items()},
    **{f"XFAM, bit {bit}": Ours("tdx.xfam", xfam(0x0602E7 | 1 << bit)) for bit in (3, 4, 10, 13, 16, 19, 20, 63)},
    **{f"XFAM without bit {bit}": Ours("tdx.xfam", xfam(0x0602E7 & ~(1 << bit))) for bit in (0, 1)},
    # the form
    "QE vendor": Case("quote.header", quote(vendor=bytes(16))),
    "ECDSA P-384": Case("quote.header", quote(key_type=3)),
    "TEE type SGX": Case("quote.header", quote(tee_type=0)),
    "version 3": Case("quote.version", quote(version=3)),
    "version 6": Case("quote.version", quote(version=6)),
    "CBOR Web Token": Case("quote.version", lambda: bytes.fromhex("d83dd28443a10126a0") + bytes(9000)),
    "PCK in another form": Case("quote.certification", quote(chain_type=4)),
    "certification data of another type": Ours("quote.certification", quote(certification=5)),
    "16 bytes of QE authentication data": Case("quote.certification", quote(auth=bytes(16))),
    "no QE authentication data": Case("quote.certification", quote(auth=b"")),
    "larger than the kernel's buffer": Ours("quote.size", lambda: PKI.quote_v4(BODY) + bytes(128 << 10)),
    "bytes behind the quote": Ours("quote.tail", lambda: PKI.quote_v4(BODY) + bytes(64) + b"junk"),
    "nothing": Case("quote.short", lambda: b""),
    "half a quote": Case("quote.short", lambda: PKI.quote_v4(BODY)[:2000]),
}  # fmt: skip


def verify(raw: bytes, given: dict[str, str]) -> None:
    """As `appraise.verify` does, and the plainest policy after it."""
    parsed = Quote.parse(raw)
    require_production(parsed.body)
    held = Collateral(NOW, b"", (TdxCollateral.build(given),))
    verdict = verify_quote(parsed, held.for_fmspc(fmspc_of(parsed)), ANCHORS, NOW)
    if verdict.tcb_status != "UpToDate":
        raise AppraisalRefused("appraisal.tcb-status", verdict.tcb_status, hint="")


def library_accepts(raw: bytes, given: dict[str, str]) -> bool:
    try:
        dcap_qvl.verify_with_root_ca(raw, dcap_qvl.QuoteCollateralV3.from_json(json.dumps(given)), PKI.root_der, NOW)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kind", [4, 2, 3, 5])
def test_healthy_quote_is_accepted(kind: int) -> None:
    """The control: without a defect, nothing refuses."""
    raw = PKI.quote_v4(BODY) if kind == 4 else PKI.quote_v5(BODY, min(kind, 4))
    verify(raw, HEALTHY)
    verify(raw + bytes(3000), HEALTHY)
    assert library_accepts(raw, HEALTHY)


@pytest.mark.parametrize("value", [SEPT | 1 << bit for bit in (27, 30, 63)])
def test_attribute_that_a_policy_may_name_is_accepted(value: int) -> None:
    verify(attributes(value)(), HEALTHY)


@pytest.mark.parametrize("name", CASES)
def test_defect_is_refused(name: str) -> None:
    case = CASES[name]
    with pytest.raises(AgentError) as refused:
        verify(case.quote(), case.collateral())
    assert refused.value.code == case.code, refused.value


@pytest.mark.parametrize("name", CASES)
def test_what_the_library_refuses_alone_is_known(name: str) -> None:
    """A change here is news: a new version refuses more, or forgot something."""
    case = CASES[name]
    assert library_accepts(case.quote(), case.collateral()) is not case.library


def test_td_launched_under_an_old_module_is_named_so() -> None:
    with pytest.raises(AppraisalRefused, match="TDRelaunchAdvised"):
        verify(relaunch(), PKI.collateral(newer_svn=7))


def test_platform_of_the_same_family_is_accepted() -> None:
    other = IntelPki(NOW, seed=bytes(32), platform=Platform(ppid=b"\1" * 16, instance=b"\2" * 16))
    verify(other.quote_v4(BODY), HEALTHY)
