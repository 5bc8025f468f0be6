"""Intel in software: SGX root, PCK and TCB signers, collateral, TDX quotes. Only the trust anchor differs from Intel's.

Source: Intel SGX PCK Certificate and CRL Profile; Intel TDX DCAP Quoting Library API, appendix 3.
"""

import datetime as dt
import hashlib
import json
import os
import struct
import time
from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from antechamber.simulator import authority
from antechamber.simulator.authority import Issued, Subject, Window, der, pem
from antechamber.simulator.sgx import SGX, Platform, sgx_extension

QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")  # Intel's: verifiers insist
SEPT_VE_DISABLE = (1 << 28).to_bytes(8, "little")
DEBUG_TD = (1 | 1 << 28).to_bytes(8, "little")
XFAM = (0x0602E7).to_bytes(8, "little")  # as on bare metal with AMX
MR_SEAM = hashlib.sha384(b"simulated TDX module").digest()
_QE_SIGNER = hashlib.sha256(b"simulated TD QE signer").digest()
_QE_SVN = 4
_QE_ATTRIBUTES = bytes.fromhex("1500000000000000e700000000000000")
_QE_IDENTITY_ATTRIBUTES = bytes.fromhex("11000000000000000000000000000000")
_MODULE_SVN = 5
_AUTH = bytes(range(32))  # QE authentication data: dcap-qvl takes exactly 32 bytes
_SGX_REPORT = struct.Struct("<16sI28s16s32s32s32s96sHH60s64s")
_TYPE_AND_SIZE = struct.Struct("<HI")
_SIGNER_USES = ("digital_signature", "content_commitment")


class CollateralKnobs(TypedDict, total=False):
    """What a test may turn. Each default is the healthy value."""

    now: int  # issue time, unix seconds; default: the PKI's own
    days: int  # until nextUpdate; negative: expired
    tcb_status: str
    advisories: Sequence[str]
    qe_status: str
    module_status: str
    tdx_svn: Sequence[int]  # of the one TCB level, 16 numbers
    eval_number: int
    fmspc: str
    pce_id: str
    revoke_pck: bool
    revoke_pck_ca: bool
    tcb_signer: Literal["tcb", "pck", "pck-ca", "root", "under-pck-ca"]  # the last: the right name, another issuer
    qe_product: int  # the expected ISVPRODID
    qe_signer: bytes  # the expected MRSIGNER
    qe_misc: int  # the expected MISCSELECT
    qe_attributes: bytes  # expected, 16 bytes
    modules: Sequence[str]  # ids of the TDX module identities
    newer_svn: int  # of a module that is UpToDate, and makes the healthy one OutOfDate


class QuoteKnobs(TypedDict, total=False):
    """What a test may turn in a quote, which is well signed all the same. Each default is the healthy value."""

    version: int
    key_type: int
    tee_type: int
    vendor: bytes  # 16
    qe_signer: bytes
    qe_product: int
    qe_misc: int
    qe_attributes: bytes
    qe_svn: int
    qe_binding: bytes  # of attestation key and authentication data, 32 bytes
    auth: bytes
    certification: int  # 6: a QE report and what certifies it
    chain_type: int  # 5: PEM
    attestation_signer: ec.EllipticCurvePrivateKey
    qe_report_signer: ec.EllipticCurvePrivateKey


class IntelPki:
    """One simulated Intel with one platform. The same `seed` and `now` give the same certificates."""

    def __init__(self, now: int | None = None, *, seed: bytes | None = None, platform: Platform | None = None) -> None:
        self.now = int(time.time()) if now is None else now
        self._seed = os.urandom(32) if seed is None else seed
        self.platform = platform or Platform(ppid=self._bytes("ppid", 16), instance=self._bytes("instance", 16))
        self._window = Window(_utc(self.now - 86_400), _utc(self.now + 3650 * 86_400))
        self._root = self._issue("Intel SGX Root CA", None, path_length=1)
        self._pck_ca = self._issue("Intel SGX PCK Platform CA", self._root, path_length=0)
        self._tcb = self._issue("Intel SGX TCB Signing", self._root)
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX), sgx_extension(self.platform))
        self._pck = self._issue("Intel SGX PCK Certificate", self._pck_ca, extensions=(extension,))
        self._attestation_key = self._key("attestation")

    @property
    def root_der(self) -> bytes:
        return der(self._root.certificate)

    @property
    def root_pem(self) -> str:
        return pem(self._root.certificate)

    @property
    def fmspc(self) -> str:
        """12 upper-case hex digits."""
        return self.platform.fmspc.hex().upper()

    def collateral(self, **knobs: Unpack[CollateralKnobs]) -> dict[str, str]:
        """One set in dcap-qvl's JSON shape: PEM chains, CRLs and signatures in hex, signed JSON as exact text."""
        issued, until = _validity(knobs.get("now", self.now), knobs.get("days", 30))
        window = Window(issued, until)
        tcb_info, qe_identity = self._tcb_info(window, knobs), self._qe_identity(window, knobs)
        signer, chain = self._collateral_signer(knobs.get("tcb_signer", "tcb"))
        revoked_ca = [self._pck_ca.certificate.serial_number] if knobs.get("revoke_pck_ca") else []
        revoked_pck = [self._pck.certificate.serial_number] if knobs.get("revoke_pck") else []
        return {
            "pck_crl_issuer_chain": self._pck_ca_chain,
            "root_ca_crl": der(authority.revocations(self._root, window, revoked_ca)).hex(),
            "pck_crl": der(authority.revocations(self._pck_ca, window, revoked_pck)).hex(),
            "tcb_info_issuer_chain": chain,
            "tcb_info": tcb_info,
            "tcb_info_signature": _sign(signer.key, tcb_info.encode()).hex(),
            "qe_identity_issuer_chain": chain,
            "qe_identity": qe_identity,
            "qe_identity_signature": _sign(signer.key, qe_identity.encode()).hex(),
        }

    def _collateral_signer(self, who: str) -> tuple[Issued, str]:
        """And its chain."""
        if who == "under-pck-ca":
            signer = self._issue("Intel SGX TCB Signing", self._pck_ca)
            return signer, pem(signer.certificate) + self._pck_ca_chain
        signer = {"tcb": self._tcb, "pck": self._pck, "pck-ca": self._pck_ca, "root": self._root}[who]
        above = {"pck": self._pck_ca_chain, "root": ""}.get(who, self.root_pem)
        return signer, pem(signer.certificate) + above

    def quote_v4(self, body: bytes, **knobs: Unpack[QuoteKnobs]) -> bytes:
        """A version 4 quote over a TD 1.0 body (584 bytes)."""
        if len(body) != 584:
            raise ValueError(f"a version 4 body has 584 bytes, not {len(body)}")
        return self._finish(_header(4, knobs) + body, knobs)

    def quote_v5(
        self,
        body: bytes,
        body_type: int = 3,
        *,
        svn2: bytes | None = None,
        mr_servicetd: bytes = bytes(48),
        extra: bytes = bytes(237),
    ) -> bytes:
        """A version 5 quote: body type 2 (TD 1.0), 3 (TD 1.5) or 4 (TD 1.5 extended) over a TD 1.0 body."""
        if len(body) != 584 or body_type not in (2, 3, 4):
            raise ValueError(f"body of {len(body)} bytes, type {body_type}")
        if body_type >= 3:
            body += (body[:16] if svn2 is None else svn2) + mr_servicetd
        if body_type == 4:
            body += extra
        return self._finish(_header(5, {}) + _TYPE_AND_SIZE.pack(body_type, len(body)) + body, {})

    # -- keys and certificates

    def _bytes(self, label: str, size: int) -> bytes:
        return authority.derive_bytes(self._seed, f"intel/{label}", size)

    def _key(self, label: str) -> ec.EllipticCurvePrivateKey:
        return authority.derive_key(self._seed, f"intel/{label}", ec.SECP256R1())

    def _issue(
        self,
        name: str,
        issuer: Issued | None,
        *,
        path_length: int | None = None,
        extensions: Sequence[x509.ExtensionType] = (),
    ) -> Issued:
        crl = x509.DistributionPoint(
            [x509.UniformResourceIdentifier("https://simulated.invalid/ca.der")], None, None, None
        )
        subject = Subject(
            name=authority.distinguished_name(
                name,
                ORGANIZATION_NAME="Simulated Corporation",
                LOCALITY_NAME="Nowhere",
                STATE_OR_PROVINCE_NAME="CA",
                COUNTRY_NAME="US",
            ),
            serial=int.from_bytes(b"\x01" + self._bytes(f"serial/{name}", 15), "big"),
            ca=path_length is not None,
            path_length=path_length,
            uses=_SIGNER_USES if path_length is None else authority.CA_USES,
            extensions=(x509.CRLDistributionPoints([crl]), *extensions),
        )
        return authority.issue(subject, self._key(name), issuer, self._window, hashes.SHA256())

    @property
    def _pck_ca_chain(self) -> str:
        return pem(self._pck_ca.certificate) + self.root_pem

    # -- collateral

    def _tcb_info(self, window: Window, knobs: CollateralKnobs) -> str:
        svns = [_MODULE_SVN] if "newer_svn" not in knobs else [knobs["newer_svn"], _MODULE_SVN]
        levels, module_levels = [], []
        for svn in svns:
            status = "OutOfDate" if svn != svns[0] else "UpToDate"
            tcb = {
                "sgxtcbcomponents": [{"svn": n} for n in self.platform.cpu_svn],
                "pcesvn": self.platform.pce_svn,
                "tdxtcbcomponents": [{"svn": n} for n in knobs.get("tdx_svn", [svn, 0, 3, *[0] * 13])],
            }
            level = {"tcb": tcb, "tcbDate": _iso(window.start), "tcbStatus": knobs.get("tcb_status", status)}
            if advisories := knobs.get("advisories"):
                level["advisoryIDs"] = list(advisories)
            levels.append(level)
            module_status = knobs.get("module_status", status)
            module_levels.append({"tcb": {"isvsvn": svn}, "tcbDate": _iso(window.start), "tcbStatus": module_status})
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        return _json(
            {
                "id": "TDX",
                "version": 3,
                "issueDate": _iso(window.start),
                "nextUpdate": _iso(window.end),
                "fmspc": knobs.get("fmspc", self.fmspc),
                "pceId": knobs.get("pce_id", "0000"),
                "tcbType": 0,
                "tcbEvaluationDataNumber": knobs.get("eval_number", 20),
                "tdxModule": module,
                "tdxModuleIdentities": [
                    {"id": name, **module, "tcbLevels": module_levels} for name in knobs.get("modules", ["TDX_01"])
                ],
                "tcbLevels": levels,
            }
        )

    def _qe_identity(self, window: Window, knobs: CollateralKnobs) -> str:
        level = {
            "tcb": {"isvsvn": _QE_SVN},
            "tcbDate": _iso(window.start),
            "tcbStatus": knobs.get("qe_status", "UpToDate"),
        }
        return _json(
            {
                "id": "TD_QE",
                "version": 2,
                "issueDate": _iso(window.start),
                "nextUpdate": _iso(window.end),
                "tcbEvaluationDataNumber": knobs.get("eval_number", 20),
                "miscselect": knobs.get("qe_misc", 0).to_bytes(4, "little").hex().upper(),
                "miscselectMask": "FFFFFFFF",
                "attributes": knobs.get("qe_attributes", _QE_IDENTITY_ATTRIBUTES).hex().upper(),
                "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
                "mrsigner": knobs.get("qe_signer", _QE_SIGNER).hex().upper(),
                "isvprodid": knobs.get("qe_product", 2),
                "tcbLevels": [level],
            }
        )

    # -- quotes

    def _finish(self, signed: bytes, knobs: QuoteKnobs) -> bytes:
        data = self._signature_data(signed, knobs)
        return signed + struct.pack("<I", len(data)) + data

    def _signature_data(self, signed: bytes, knobs: QuoteKnobs) -> bytes:
        public = self._attestation_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        auth = knobs.get("auth", _AUTH)
        report = self._qe_report(knobs.get("qe_binding", hashlib.sha256(public + auth).digest()), knobs)
        chain = (pem(self._pck.certificate) + self._pck_ca_chain).encode() + b"\0"
        certified = report + _sign(knobs.get("qe_report_signer", self._pck.key), report)
        certified += (
            struct.pack("<H", len(auth)) + auth + _TYPE_AND_SIZE.pack(knobs.get("chain_type", 5), len(chain)) + chain
        )
        signature = _sign(knobs.get("attestation_signer", self._attestation_key), signed)
        return signature + public + _TYPE_AND_SIZE.pack(knobs.get("certification", 6), len(certified)) + certified

    def _qe_report(self, binding: bytes, knobs: QuoteKnobs) -> bytes:
        enclave = hashlib.sha256(b"simulated TD QE").digest()
        return _SGX_REPORT.pack(
            self.platform.cpu_svn,
            knobs.get("qe_misc", 0),
            b"",
            knobs.get("qe_attributes", _QE_ATTRIBUTES),
            enclave,
            b"",
            knobs.get("qe_signer", _QE_SIGNER),
            b"",
            knobs.get("qe_product", 2),
            knobs.get("qe_svn", _QE_SVN),
            b"",
            binding,
        )


def td_body(
    *,
    mr_td: bytes = b"\x11" * 48,
    rtmr: Sequence[bytes] = (b"\x01" * 48, b"\x02" * 48, b"\x03" * 48, bytes(48)),
    report_data: bytes = bytes(64),
    mr_config_id: bytes = bytes(48),
    td_attributes: bytes = SEPT_VE_DISABLE,
    xfam: bytes = XFAM,
    tee_tcb_svn: bytes = bytes([_MODULE_SVN, 1, 3, *[0] * 13]),
    mr_seam: bytes = MR_SEAM,
    mrsigner_seam: bytes = bytes(48),
    seam_attributes: bytes = bytes(8),
    mr_owner: bytes = bytes(48),
    mr_owner_config: bytes = bytes(48),
) -> bytes:
    """A TD 1.0 body, 584 bytes. Source: TDX DCAP Quoting Library API, TD Quote Body."""
    body = b"".join(
        (
            tee_tcb_svn,
            mr_seam,
            mrsigner_seam,
            seam_attributes,
            td_attributes,
            xfam,
            mr_td,
            mr_config_id,
            mr_owner,
            mr_owner_config,
            *rtmr,
            report_data,
        )
    )
    if len(body) != 584:
        raise ValueError(f"a TD 1.0 body has 584 bytes, not {len(body)}")
    return body


def _header(version: int, knobs: QuoteKnobs) -> bytes:
    return struct.pack(
        "<HHI4s16s20s",
        knobs.get("version", version),
        knobs.get("key_type", 2),
        knobs.get("tee_type", 0x81),
        b"",
        knobs.get("vendor", QE_VENDOR),
        b"simulated QE",
    )


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return authority.raw_signature(key, hashes.SHA256(), data)


def _validity(now: int, days: int) -> tuple[dt.datetime, dt.datetime]:
    """From a day before `now`, or from before an end that has already passed."""
    until = now + days * 86_400
    return _utc(min(now, until) - 86_400), _utc(until)


def _utc(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _iso(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
