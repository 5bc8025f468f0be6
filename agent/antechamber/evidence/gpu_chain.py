"""GPU Evidence verified: chain to the pinned root, nonce, signature, firmware identity. Nothing is appraised here.

Measurements are not compared with RIMs and revocation is not asked: the claims say so, and a policy must accept it.
Source: NVIDIA nvtrust and attestation SDK 1.2.2 (behaviour), TCG DICE Attestation Architecture 1.1 (extensions).
"""

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

import rfc8785
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from antechamber.errors import AppraisalRefused, MalformedEvidence
from antechamber.evidence.anchors import Anchors, nvidia_name, spki_sha256
from antechamber.evidence.certificates import CERTIFICATE_ERRORS, verify_issued
from antechamber.evidence.composite import GpuEvidence
from antechamber.evidence.gpu import GPU_BLOCKS, SWITCH_BLOCKS, Mode, Report

JSON: TypeAlias = str | int | bool | None

MAX_CHAIN = 0x8000  # bytes of PEM
MAX_CHAINS = 512  # remembered, each at most MAX_CHAIN
_LEAST, _MOST = 3, 6  # certificates: leaf, BROM, ..., root
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----\s*")
_FAMILIES = {"HOPPER": r"GH100", "BLACKWELL": r"GB\d{3}", "LS10": r"LS_10"}
_UNDERSTOOD = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE}  # the only ones that may be critical
_COMPOSITE_DEVICE_ID = x509.ObjectIdentifier("2.23.133.5.4.1")  # Hopper, LS10
_TCB_INFO = x509.ObjectIdentifier("2.23.133.5.4.1.1")  # Blackwell
_SHA384_FWID = bytes.fromhex("06096086480165030402020430")  # in FWID ::= SEQUENCE { sha384, OCTET STRING of 48 }
_SEQUENCE, _FWIDS = 0x30, 0xA6  # tags; the second is DiceTcbInfo.fwids
_HINT = "GPU Evidence must come from the GPU's own firmware, over this nonce; collect it again after a cold boot"
_CHAIN_HINT = "send the chain as NVML returned it, leaf first; the policy's NVIDIA anchor must be its root"


@dataclass(frozen=True, slots=True)
class GpuClaims:
    """What a device's verified Evidence says of it.

    `fwid_matched` is False where the report does not carry the firmware identity that its certificate names (535
    drivers, switches): a policy decides. `secure_boot` and `debug` are None: no report of SPDM 1.1 states them.
    """

    arch: str
    driver_version: str  # "" for a switch
    vbios_version: str
    chip: str  # GH100 A01 GSP BROM
    ueid: str  # serial number of the leaf, decimal
    brom_serial: str  # hex: 41 and the GPU's PDI, 50 and the switch's
    mode: Mode
    fwid_matched: bool
    measurements: tuple[bytes, ...]
    root_spki: bytes  # SHA-256 of the key of the root that the chain ends at
    secure_boot: bool | None = None
    debug: bool | None = None
    measurements_appraised: bool = False
    revocation_appraised: bool = False

    @property
    def anchor(self) -> str:
        """`nvidia`, or `simulated:<12 hex digits of root_spki>`."""
        return nvidia_name(self.root_spki)

    def to_json(self) -> dict[str, JSON]:
        """For tokens and the `gpu` event: only what every report of this device in one boot says alike.

        The measurements are left out: nothing promises that all 64 stay the same while the device works.
        """
        return {
            "anchor": self.anchor,
            "arch": self.arch,
            "brom_serial": self.brom_serial,
            "chip": self.chip,
            "debug": self.debug,
            "driver_version": self.driver_version,
            "fwid_matched": self.fwid_matched,
            "measurements_appraised": self.measurements_appraised,
            "mode": self.mode,
            "revocation_appraised": self.revocation_appraised,
            "secure_boot": self.secure_boot,
            "ueid": self.ueid,
            "vbios_version": self.vbios_version,
        }


def gpu_event(claims: Sequence[GpuClaims]) -> str:
    """Content of the `gpu` event: `sha384:<hex>` of the claims as one RFC 8785 list, in the order collected.

    Measured at boot and computed again from the Evidence of every verdict: other devices give another content.
    """
    return "sha384:" + hashlib.sha384(rfc8785.dumps([c.to_json() for c in claims])).hexdigest()


def verify_devices(
    devices: Sequence[GpuEvidence], *, nonce: bytes, anchors: Anchors, now: int
) -> tuple[GpuClaims, ...]:
    """Every device over one nonce, each a different one. Raises as `verify_device`, and `gpu.duplicate`."""
    claims = tuple(verify_device(d, nonce=nonce, anchors=anchors, now=now) for d in devices)
    serials = [c.brom_serial for c in claims]
    if twice := {s for s in serials if serials.count(s) > 1}:
        hint = "each device must give its own Evidence"
        raise AppraisalRefused("gpu.duplicate", f"{', '.join(sorted(twice))} more than once", hint=hint)
    return claims


def verify_device(device: GpuEvidence, *, nonce: bytes, anchors: Anchors, now: int) -> GpuClaims:
    """One device's report and chain at `now` (Unix seconds), over our nonce of 32 bytes.

    1. the report parses, and is over our nonce
    2. the chain leads from a leaf, by direct issue, to the pinned root, all valid at `now`
    3. the leaf belongs to the family claimed, and so does the report
    4. the leaf's key signed exactly these bytes
    5. the firmware measured is the firmware that the leaf certifies

    Raises MalformedEvidence `gpu-report.*`; AppraisalRefused `gpu.nonce`, `gpu.chain`, `gpu.anchor`, `gpu.expired`,
    `gpu.arch`, `gpu.signature`, `gpu.fwid`.
    """
    report = Report.parse(device.report)  # 1
    if report.nonce != nonce:  # of 32 bytes, so a nonce of another size never matches
        raise AppraisalRefused("gpu.nonce", f"report over {report.nonce.hex()}, not {nonce.hex()}", hint=_HINT)
    try:
        chain, key = _verified_chain(device.certificate, anchors.nvidia_spki)  # 2
        for certificate in reversed(chain):
            _require_valid(certificate, now)
        _verify_family(device.arch, chain, report)  # 3
        _verify_signature(key, chain[0], report)  # 4
        fwid_matched = _verify_fwid(device.arch, chain[0], report.opaque.fwid)  # 5
        return _claims(device.arch, chain, report, fwid_matched, anchors)
    except CERTIFICATE_ERRORS as e:  # fields are parsed when first read
        raise AppraisalRefused("gpu.chain", f"a certificate does not parse: {e}", hint=_CHAIN_HINT) from e


def _claims(
    arch: str, chain: Sequence[x509.Certificate], report: Report, fwid_matched: bool, anchors: Anchors
) -> GpuClaims:
    return GpuClaims(
        arch=arch,
        driver_version=report.opaque.driver_version,
        vbios_version=report.opaque.vbios_version,
        chip=_common_name(chain[1]),
        ueid=str(chain[0].serial_number),
        brom_serial=f"{chain[1].serial_number:X}",
        mode=report.opaque.mode,
        fwid_matched=fwid_matched,
        measurements=report.measurements,
        root_spki=anchors.nvidia_spki,  # the chain ends there
    )


def _parse_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """3 to 6 certificates and nothing else."""
    blocks = _PEM.findall(pem) if len(pem) <= MAX_CHAIN else []
    if not _LEAST <= len(blocks) <= _MOST or sum(map(len, blocks)) != len(pem):
        seen = f"{len(blocks)} certificates in {len(pem)} bytes, not {_LEAST} to {_MOST} and nothing else"
        raise AppraisalRefused("gpu.chain", seen, hint=_CHAIN_HINT)
    try:
        return tuple(x509.load_pem_x509_certificate(b) for b in blocks)
    except CERTIFICATE_ERRORS as e:
        raise AppraisalRefused("gpu.chain", f"a certificate does not parse: {e}", hint=_CHAIN_HINT) from e


@functools.lru_cache(MAX_CHAINS)
def _verified_chain(pem: bytes, nvidia_spki: bytes) -> tuple[tuple[x509.Certificate, ...], ec.EllipticCurvePublicKey]:
    """A chain that leads to the anchor, and its leaf's key: all that no time and no revocation can change.

    What held is remembered for exactly these bytes and this anchor; a refusal never is. From the root down, so that
    whoever makes certificates of his own is refused before a link of them holds.
    Raises AppraisalRefused `gpu.chain`, `gpu.anchor`, and CERTIFICATE_ERRORS.
    """
    chain = _parse_chain(pem)
    root = chain[-1]
    if len(set(chain)) != len(chain):
        raise AppraisalRefused("gpu.chain", "a certificate stands twice", hint=_CHAIN_HINT)
    for certificate in chain:
        _require_known(certificate)
    if spki_sha256(root) != nvidia_spki:
        seen = f"root {_common_name(root)} has key {spki_sha256(root).hex()}"
        raise AppraisalRefused("gpu.anchor", seen, hint="this is not the NVIDIA anchor that the policy names")
    for certificate, issuer in reversed(tuple(zip(chain, (*chain[1:], root), strict=True))):
        try:
            verify_issued(certificate, issuer)
        except (*CERTIFICATE_ERRORS, InvalidSignature) as e:
            seen = f"{_common_name(certificate)} is not issued by {_common_name(issuer)}"
            raise AppraisalRefused("gpu.chain", seen, hint=_CHAIN_HINT) from e
    for below, certificate in enumerate(chain[1:]):
        _require_issuer(certificate, below)
    _require_leaf(chain[0])
    return chain, _p384(chain[0])


def _p384(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        seen = f"{_common_name(certificate)} has a key that is not on P-384"
        raise AppraisalRefused("gpu.chain", seen, hint=_CHAIN_HINT)
    return key


def _require_known(certificate: x509.Certificate) -> None:
    _p384(certificate)
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        seen = f"{_common_name(certificate)} is not signed with ECDSA and SHA-384"
        raise AppraisalRefused("gpu.chain", seen, hint=_CHAIN_HINT)
    if unknown := [e.oid.dotted_string for e in certificate.extensions if e.critical and e.oid not in _UNDERSTOOD]:
        raise AppraisalRefused("gpu.chain", f"critical extension {unknown[0]} is unknown", hint=_CHAIN_HINT)


def _require_valid(certificate: x509.Certificate, now: int) -> None:
    if not certificate.not_valid_before_utc <= datetime.fromtimestamp(now, UTC) <= certificate.not_valid_after_utc:
        seen = f"{_common_name(certificate)} ended {certificate.not_valid_after_utc:%Y-%m-%d} or has not begun"
        raise AppraisalRefused("gpu.expired", seen, hint="the time comes from the signed collateral: look at its date")


def _require_issuer(certificate: x509.Certificate, below: int) -> None:
    """A CA that may sign certificates, with `below` intermediates under it."""
    constraints, usage = _constraints(certificate), _usage(certificate)
    if constraints is None or not constraints.ca or usage is None or not usage.key_cert_sign:
        seen = f"{_common_name(certificate)} may not issue certificates"
        raise AppraisalRefused("gpu.chain", seen, hint=_CHAIN_HINT)
    if constraints.path_length is not None and constraints.path_length < below:
        seen = f"{_common_name(certificate)} allows {constraints.path_length} intermediates, has {below}"
        raise AppraisalRefused("gpu.chain", seen, hint=_CHAIN_HINT)


def _require_leaf(certificate: x509.Certificate) -> None:
    constraints, usage = _constraints(certificate), _usage(certificate)
    if (constraints is not None and constraints.ca) or usage is None or not usage.digital_signature:
        seen = f"{_common_name(certificate)} is not a firmware's signing certificate"
        raise AppraisalRefused("gpu.chain", seen, hint=_CHAIN_HINT)


def _constraints(certificate: x509.Certificate) -> x509.BasicConstraints | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return None


def _usage(certificate: x509.Certificate) -> x509.KeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else "(no single name)"


def _verify_family(arch: str, chain: Sequence[x509.Certificate], report: Report) -> None:
    """The root also certifies switches and other chips: names are what tells them apart."""
    family, brom = _common_name(chain[0]).split(" ")[0], _common_name(chain[1]).split(" ")[0]
    if arch not in _FAMILIES or not re.fullmatch(_FAMILIES[arch], family, re.ASCII) or brom != family:
        raise AppraisalRefused("gpu.arch", f"{arch!r} with certificates of {family} and {brom}", hint=_HINT)
    if report.opaque.chip not in ("", family):
        raise AppraisalRefused("gpu.arch", f"report of {report.opaque.chip}, certificate of {family}", hint=_HINT)
    if arch != "LS10" and not report.opaque.driver_version:
        raise MalformedEvidence("gpu-report.driver", "a GPU's report without a driver version", hint=_HINT)
    blocks = SWITCH_BLOCKS if arch == "LS10" else GPU_BLOCKS
    if len(report.measurements) != blocks:
        raise AppraisalRefused("gpu.arch", f"{arch} with {len(report.measurements)} blocks, not {blocks}", hint=_HINT)


def _verify_signature(key: ec.EllipticCurvePublicKey, leaf: x509.Certificate, report: Report) -> None:
    r, s = report.signature[:48], report.signature[48:]
    signature = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    try:
        key.verify(signature, report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as e:
        seen = f"the report is not signed by {_common_name(leaf)}"
        raise AppraisalRefused("gpu.signature", seen, hint=_HINT) from e


def _verify_fwid(arch: str, leaf: x509.Certificate, reported: bytes | None) -> bool:
    """False where the report has none; what the certificate names must be there, and equal, otherwise."""
    certified = _certified_fwid(leaf, _TCB_INFO if arch == "BLACKWELL" else _COMPOSITE_DEVICE_ID)
    if reported is None:
        return False
    if certified != reported:
        seen = f"the report says {reported.hex()}, its certificate {certified.hex()}"
        raise AppraisalRefused("gpu.fwid", seen, hint=_HINT)
    return True


def _certified_fwid(leaf: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes:
    try:
        value = leaf.extensions.get_extension_for_oid(oid).value.public_bytes()
    except x509.ExtensionNotFound as e:
        raise AppraisalRefused("gpu.fwid", "the leaf names no firmware", hint=_CHAIN_HINT) from e
    # SEQUENCE { version, device key, FWID }: the FWID comes last. DiceTcbInfo has a list: the first is the firmware's.
    entries = [value[-61:]] if oid == _COMPOSITE_DEVICE_ID else _tcb_info_fwids(value)
    for entry in entries:
        if len(entry) == 61 and entry[:13] == _SHA384_FWID:
            return entry[13:]
    raise AppraisalRefused("gpu.fwid", "the leaf names its firmware in no known form", hint=_CHAIN_HINT)


def _tcb_info_fwids(value: bytes) -> list[bytes]:
    info = [item for tag, body in _der(value) if tag == _SEQUENCE for item in _der(body)]
    lists = [_der(body) for tag, body in info if tag == _FWIDS]
    return [body for entries in lists for tag, body in entries if tag == _SEQUENCE]


def _der(raw: bytes) -> list[tuple[int, bytes]]:
    """The elements of one level. Raises AppraisalRefused `gpu.fwid`. Source: X.690, low tag numbers only."""
    items, at = [], 0
    while at < len(raw):
        start = at + 2
        size = raw[at + 1] if start <= len(raw) else 0x80
        if size in (0x81, 0x82):  # the size follows, in one or two bytes
            start += size - 0x80
            size = int.from_bytes(raw[at + 2 : start], "big")
        elif size >= 0x80:
            size = len(raw)
        if start + size > len(raw):
            raise AppraisalRefused("gpu.fwid", "the leaf's firmware extension is not DER", hint=_CHAIN_HINT)
        items.append((raw[at], raw[start : start + size]))
        at = start + size
    return items
