"""A small NVIDIA PKI and report writer whose every rule a test can break. It imitates the wire, not our code."""

import datetime as dt
import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from antechamber.evidence.anchors import Anchors, spki_sha256
from antechamber.evidence.composite import GpuEvidence

NOW = 1_790_000_000
NONCE = bytes(range(32))
FWID = hashlib.sha384(b"firmware").digest()
LEGACY = ((3, b"570.124.06\0"), (6, bytes.fromhex("009f009601000000")), (20, FWID), (34, b"\1\0"), (36, b"\0\0"))
_SHA384 = bytes.fromhex("303d06096086480165030402020430")


def legacy(fields: Iterable[tuple[int, bytes]] = LEGACY) -> bytes:
    return b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in fields)


def nvdaod(fields: Iterable[tuple[int, bytes]] = LEGACY, *, profile: int = 0, major: int = 2) -> bytes:
    head = struct.pack("<6sHBB2s", b"NVDAOD", profile, major, 0, bytes(2))
    return head + b"".join(struct.pack("<HHH", kind, 0x86, len(value)) + value for kind, value in fields)


def block(index: int, value: bytes = b"\7" * 48) -> bytes:
    return struct.pack("<BBHBH", index, 1, 51, 1, 48) + value


def signed_part(
    opaque: bytes | None = None,
    *,
    nonce: bytes = NONCE,
    indices: Sequence[int] = range(1, 65),
    count: int | None = None,
) -> bytes:
    """All that the device signs."""
    blocks, opaque = b"".join(map(block, indices)), legacy() if opaque is None else opaque
    head = b"\x11\xe0\x01\xff" + nonce + b"\0" + b"\x11\x60\0\0" + bytes([len(indices) if count is None else count])
    body = len(blocks).to_bytes(3, "little") + blocks + b"\5" * 32
    return head + body + len(opaque).to_bytes(2, "little") + opaque


@dataclass
class Certificate:
    """One certificate to come."""

    name: str
    curve: ec.EllipticCurve = field(default_factory=ec.SECP384R1)
    ca: bool | None = True
    path_length: int | None = None
    key_cert_sign: bool = True
    begin: dt.datetime = dt.datetime(2020, 10, 17, tzinfo=dt.UTC)
    end: dt.datetime = dt.datetime(9999, 12, 31, tzinfo=dt.UTC)
    digest: hashes.HashAlgorithm = field(default_factory=hashes.SHA384)
    serial: int = field(default_factory=x509.random_serial_number)
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = ()


def composite_device_id(fwid: bytes = FWID) -> tuple[x509.ExtensionType, bool]:
    value = b"\x30\x42\x02\x01\x01" + _SHA384 + fwid
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), value), False


def tcb_info(fwid: bytes = FWID) -> tuple[x509.ExtensionType, bool]:
    fwids = _SHA384 + fwid + _SHA384 + bytes(48)
    value = b"\x30\x81" + bytes([len(fwids) + 10]) + b"\x80\x06NVIDIA" + b"\xa6" + bytes([len(fwids)]) + fwids
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1.1"), value), False


def hopper(**leaf: object) -> list[Certificate]:
    """Leaf first: firmware, BROM, ICA, family, root."""
    first = {"ca": None, "key_cert_sign": False, "extensions": (composite_device_id(),)} | leaf
    names = (
        "GH100 A01 GSP BROM",
        "NVIDIA GH100 Provisioner ICA 1",
        "NVIDIA GH100 Identity",
        "NVIDIA Device Identity CA",
    )
    return [Certificate("GH100 A01 GSP FMC LF", **first), *(Certificate(n) for n in names)]  # type: ignore[arg-type]


def blackwell() -> list[Certificate]:
    chain = hopper(extensions=(tcb_info(),))
    for certificate in chain:
        certificate.name = certificate.name.replace("GH100", "GB100")
    return chain


class FakeDevice:
    """Chain and key of one device, issued by a root of its own."""

    def __init__(self, chain: Sequence[Certificate] | None = None) -> None:
        wanted = list(hopper() if chain is None else chain)
        keys = [ec.generate_private_key(c.curve) for c in wanted]
        self.key, self.issuers = keys[0], keys[1:]
        self.certificates = [
            _issue(c, key, *((wanted[min(i + 1, len(wanted) - 1)], keys[min(i + 1, len(wanted) - 1)])))
            for i, (c, key) in enumerate(zip(wanted, keys, strict=True))
        ]

    @property
    def pem(self) -> bytes:
        return b"".join(c.public_bytes(Encoding.PEM) for c in self.certificates)

    @property
    def anchors(self) -> Anchors:
        return Anchors(None, spki_sha256(self.certificates[-1]))

    def sign(self, signed: bytes) -> bytes:
        r, s = decode_dss_signature(self.key.sign(signed, ec.ECDSA(hashes.SHA384())))
        return signed + r.to_bytes(48, "big") + s.to_bytes(48, "big")

    def evidence(self, report: bytes | None = None, *, arch: str = "HOPPER", pem: bytes | None = None) -> GpuEvidence:
        raw = self.sign(signed_part()) if report is None else report
        return GpuEvidence(arch, "GPU-0", raw, self.pem if pem is None else pem)


def _issue(
    subject: Certificate, key: ec.EllipticCurvePrivateKey, issuer: Certificate, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject.name))
        .issuer_name(_name(issuer.name))
        .public_key(key.public_key())
        .serial_number(subject.serial)
        .not_valid_before(subject.begin)
        .not_valid_after(subject.end)
        .add_extension(_usage(subject), critical=True)
    )
    if subject.ca is not None:
        length = subject.path_length if subject.ca else None
        builder = builder.add_extension(x509.BasicConstraints(subject.ca, length), critical=True)
    for extension, critical in subject.extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer_key, subject.digest)  # type: ignore[arg-type]


def _usage(subject: Certificate) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not subject.key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=subject.key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
