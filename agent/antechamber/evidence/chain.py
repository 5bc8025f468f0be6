"""TDX quote verification: dcap-qvl for signatures, chains, revocation and TCB; here what it does not look at.

dcap-qvl 0.7 accepts collateral signed by any end entity under the root, a PCK included, and TCB info of another PCE.
Source: Intel SGX PCK Certificate and CRL Profile; Intel PCS API v4.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from antechamber.errors import AppraisalRefused, ConfigError, MalformedEvidence
from antechamber.evidence.anchors import Anchors, intel_name, key_id_of
from antechamber.evidence.certificates import CERTIFICATE_ERRORS, verify_issued
from antechamber.evidence.collateral import MAX_SETS, TdxCollateral
from antechamber.evidence.tdx import Quote

MAX_CHAINS = 512  # PCK chains remembered, each at most 16 KiB
_ROOT = frozenset({"Intel SGX Root CA"})
_PCK_CA = frozenset({"Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"})
_PCK = frozenset({"Intel SGX PCK Certificate"})
_TCB_SIGNER = frozenset({"Intel SGX TCB Signing"})

# dcap-qvl's errors are untyped text: the first line that occurs decides the code.
_REASONS = (
    ("QE report validation failed", "quote.qe-identity"),  # its debug mode, before the TD's
    ("Debug mode is enabled", "tdx.debug"),
    ("TD profiling is enabled", "tdx.profiling"),
    ("TD migration is enabled", "tdx.migratable"),
    ("SERVTD_EXT is enabled", "tdx.service-td"),
    ("Invalid MR service TD", "tdx.service-td"),
    ("Reserved bits in TD attributes", "tdx.attributes"),
    ("SEPT_VE_DISABLE is not enabled", "tdx.sept-ve"),
    ("TDX module identity check", "tdx.seam"),
    ("CertRevoked", "quote.revoked"),
    ("TCB status is invalid: Revoked", "quote.revoked"),
    ("UnknownRevocationStatus", "collateral.revocation"),
    ("TDX module TCB level check", "quote.tcb-level"),
    ("No matching TCB level found", "quote.tcb-level"),
    ("No matching QE TCB level found", "quote.tcb-level"),
    ("ISV enclave report signature", "quote.signature"),
    ("qe_report in quote", "quote.signature"),
    ("QE report hash mismatch", "quote.signature"),
    ("below minimum required", "quote.tcb-level"),
    ("QE MRSIGNER mismatch", "quote.qe-identity"),
    ("QE ISVPRODID mismatch", "quote.qe-identity"),
    ("QE MISCSELECT mismatch", "quote.qe-identity"),
    ("QE ATTRIBUTES mismatch", "quote.qe-identity"),
    ("issue date is in the future", "collateral.early"),
    ("CertNotValidYet", "collateral.early"),
    ("CrlExpired", "collateral.expired"),
    ("TCBInfo expired", "collateral.expired"),
    ("QE Identity expired", "collateral.expired"),
    ("CertExpired", "quote.chain-expired"),
    ("tcb_info in quote_collateral", "collateral.signature"),
    ("qe_identity in quote_collateral", "collateral.signature"),
    ("InvalidCrlSignature", "collateral.signature"),
    ("root CA CRL", "collateral.signature"),
    ("PCK CRL", "collateral.kind"),
    ("Fmspc mismatch", "collateral.fmspc"),
    ("non-TDX TCB info", "collateral.kind"),
    ("QE Identity id/version", "collateral.kind"),
    ("Failed to decode TcbInfo", "collateral.kind"),
    ("Failed to decode QeIdentity", "collateral.kind"),
    ("certificate chain", "quote.chain"),
    ("Certificate chain", "quote.chain"),
)
_HINT = "quote on a platform that Intel endorses, with current collateral"


@dataclass(frozen=True, slots=True)
class TdxVerdict:
    """What the signatures prove of the platform. The TCB status is any but Revoked: policy judges it."""

    tcb_status: str
    advisory_ids: tuple[str, ...]
    tcb_eval: int  # tcbEvaluationDataNumber, the lower of TCB info's and QE identity's
    fmspc: str  # 12 upper-case hex digits
    root_key_id: bytes  # SHA-384 of the root's public point
    anchor: str  # "intel", or "simulated:<12 hex digits of root_key_id>"
    issued: int  # the earlier of TCB info's and QE identity's issue date, seconds since the epoch
    earliest_expiration: int  # of all collateral, seconds since the epoch
    ppid: str  # hex: which processor package
    platform_instance: str  # hex: which platform registration, "" for a single-package PCK


def fmspc_of(quote: Quote) -> str:
    """FMSPC of the quote's PCK, 12 upper-case hex digits; unverified: it only chooses collateral.

    Raises MalformedEvidence `quote.pck`.
    """
    try:
        return str(_dcap().parse_pck_extension_from_pem(quote.pck_chain).fmspc.hex().upper())
    except ValueError as e:
        raise MalformedEvidence("quote.pck", _line(e), hint=_HINT) from e


def verify_quote(quote: Quote, collateral: TdxCollateral, anchors: Anchors, now: int) -> TdxVerdict:
    """Verify a quote against one set of collateral at `now`, seconds since the epoch.

    1. the PCK chain ends at the anchor, and each certificate has its role
    2. the collateral's signer is the anchor's own TCB signer
    3. dcap-qvl: revocation, validity, QE identity, signatures, TCB level, production attributes
    4. TCB info is for this PCE, and of the only type that we can compare

    Raises AppraisalRefused `quote.*`, `collateral.*`, `tdx.*`; ConfigError `install.dcap-qvl`.
    """
    root_key_id = anchors.root_key_id
    _verify_pck_chain(quote.pck_chain, root_key_id, now)  # 1
    _verify_signer(collateral.tcb_info_issuer_chain, root_key_id, now)  # 2
    if collateral.qe_identity_issuer_chain != collateral.tcb_info_issuer_chain:
        _verify_signer(collateral.qe_identity_issuer_chain, root_key_id, now)
    claims = _verify(quote.raw, collateral.text, anchors.intel_root, now)  # 3
    platform, tcb, qe = claims["platform"], claims["tcb"], claims["qe"]
    pck = platform["pck"]
    if bytes(pck["pce_id"]).hex().upper() != collateral.pce_id:  # 4
        raise AppraisalRefused("collateral.pce-id", f"TCB info is for PCE {collateral.pce_id}", hint=_HINT)
    if collateral.tcb_type != 0:
        raise AppraisalRefused("collateral.tcb-type", f"TCB info has type {collateral.tcb_type}, not 0", hint=_HINT)
    if bytes(platform["root_key_id"]) != root_key_id:
        raise AppraisalRefused("quote.anchor", "dcap-qvl used another root", hint=_HINT)
    return TdxVerdict(
        tcb_status=tcb["status"],
        advisory_ids=tuple(tcb["advisory_ids"]),
        tcb_eval=min(tcb["eval_data_number"], qe["tcb_eval_data_number"]),
        fmspc=bytes(pck["fmspc"]).hex().upper(),
        root_key_id=root_key_id,
        anchor=intel_name(root_key_id),
        issued=collateral.issue_date,
        earliest_expiration=claims["earliest_expiration_date"],
        ppid=bytes(pck["ppid"]).hex(),
        platform_instance=bytes(pck["platform_instance_id"] or b"").hex(),
    )


def _verify(raw: bytes, collateral: str, root: bytes | None, now: int) -> dict[str, Any]:
    """dcap-qvl's claims. One that it refuses goes through a second time: only its `verify` says why."""
    dcap = _dcap()
    try:
        parsed = _collateral(collateral)
    except ValueError as e:
        raise AppraisalRefused("collateral.kind", _line(e), hint=_HINT) from e
    try:
        policy = dcap.QuotePolicy.claims_only(now)  # the status is for our own policy to judge
        verified = dcap.QuoteVerifier(root).verify_with_policy(raw, parsed, now, policy)
        claims: dict[str, Any] = json.loads(verified.to_json())
    except (ValueError, OverflowError) as e:
        raise _refusal(_reason(raw, parsed, root, now) or _line(e)) from e
    return claims


def _reason(raw: bytes, collateral: Any, root: bytes | None, now: int) -> str:
    """Why a quote is refused; "" if `verify` would have accepted it, which changes nothing."""
    dcap = _dcap()
    try:
        if root is None:
            dcap.verify(raw, collateral, now)
        else:
            dcap.verify_with_root_ca(raw, collateral, root, now)
    except (ValueError, OverflowError) as e:
        return _line(e)
    return ""


@functools.lru_cache(MAX_SETS)
def _collateral(text: str) -> Any:
    """A set as dcap-qvl has it. Raises ValueError."""
    return _dcap().QuoteCollateralV3.from_json(text)


def _refusal(seen: str) -> AppraisalRefused:
    code = next((code for needle, code in _REASONS if needle in seen), "quote.refused")
    return AppraisalRefused(code, seen, hint=_HINT)


def _verify_pck_chain(pem: bytes, root_key_id: bytes, now: int) -> None:
    if now > _pck_chain(pem, root_key_id)[1]:  # one that is too early means a clock that is: dcap-qvl refuses it
        raise AppraisalRefused("quote.chain-expired", "PCK chain: a certificate is over", hint=_HINT)


@functools.lru_cache(MAX_CHAINS)
def _pck_chain(pem: bytes, root_key_id: bytes) -> tuple[int, int]:
    """When a chain that leads to the anchor is valid. What held is remembered; a refusal never is."""

    def refuse(reason: str, detail: str) -> AppraisalRefused:
        codes = {"role": "quote.role", "anchor": "quote.anchor", "chain": "quote.chain"}
        return AppraisalRefused(codes[reason], f"PCK chain: {detail}", hint=_HINT)

    return _valid(_verify_roles(pem, (_PCK, _PCK_CA, _ROOT), root_key_id, refuse))


def _verify_signer(pem: str, root_key_id: bytes, now: int) -> None:
    start, end = _signer(pem, root_key_id)
    if not start <= now <= end:
        code = "collateral.early" if now < start else "collateral.expired"
        raise AppraisalRefused(code, "collateral signer: a certificate is not valid at this time", hint=_HINT)


@functools.lru_cache(MAX_SETS)
def _signer(pem: str, root_key_id: bytes) -> tuple[int, int]:
    """As `_pck_chain`, of the collateral's signer."""

    def refuse(reason: str, detail: str) -> AppraisalRefused:
        codes = {"role": "collateral.role", "anchor": "collateral.anchor", "chain": "collateral.chain"}
        return AppraisalRefused(codes[reason], f"collateral signer: {detail}", hint=_HINT)

    return _valid(_verify_roles(pem.encode(), (_TCB_SIGNER, _ROOT), root_key_id, refuse))


def _valid(chain: Sequence[x509.Certificate]) -> tuple[int, int]:
    """When all of them are, seconds since the epoch."""
    starts, ends = ([int(t.timestamp()) for t in times] for times in zip(
        *((c.not_valid_before_utc, c.not_valid_after_utc) for c in chain), strict=True))  # fmt: skip
    return max(starts), min(ends)


def _verify_roles(
    pem: bytes,
    roles: Sequence[frozenset[str]],
    root_key_id: bytes,
    refuse: Callable[[str, str], AppraisalRefused],
) -> list[x509.Certificate]:
    """One certificate a role, leaf first, each issued directly by the next; the last has the anchor's key."""
    try:
        chain = x509.load_pem_x509_certificates(pem)
        names = [_common_name(certificate) for certificate in chain]
        seen = key_id_of(chain[-1])
    except CERTIFICATE_ERRORS as e:
        raise refuse("chain", _line(e)) from e
    if len(chain) != len(roles) or any(name not in role for name, role in zip(names, roles, strict=True)):
        raise refuse(
            "role", f"it is {' < '.join(names)[:200]}, not {' < '.join(' or '.join(sorted(r)) for r in roles)}"
        )
    if seen != root_key_id:
        raise refuse("anchor", f"it ends at root key {seen.hex()[:12]}, the anchor is {root_key_id.hex()[:12]}")
    for certificate, issuer in reversed(tuple(zip(chain, [*chain[1:], chain[-1]], strict=True))):
        try:
            verify_issued(certificate, issuer)
        except (*CERTIFICATE_ERRORS, InvalidSignature) as e:
            raise refuse("chain", f"{_common_name(certificate)} is not issued by the next certificate") from e
    return chain


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else f"{len(names)} common names"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _dcap() -> ModuleType:
    try:
        import dcap_qvl  # noqa: PLC0415  # an extra: a guest that only attests does not need it
    except ImportError as e:
        raise ConfigError("install.dcap-qvl", str(e), hint="pip install 'antechamber[client]'") from e
    return dcap_qvl  # type: ignore[no-any-return]
