"""Certificates of the simulated vendors. Every key follows from one seed: processes agree without sharing keys."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

_USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
CA_USES = ("key_cert_sign", "crl_sign")


def derive_bytes(seed: bytes, label: str, size: int) -> bytes:
    """`size` bytes that only `seed` and `label` decide."""
    return HKDF(hashes.SHA256(), size, None, b"antechamber-simulator/" + label.encode()).derive(seed)


def derive_key(seed: bytes, label: str, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    """A private key from `seed` and `label`: 64 bits more than the order, so the bias does not matter."""
    wide = int.from_bytes(derive_bytes(seed, f"key/{label}", curve.key_size // 8 + 8), "big")
    order = curve.group_order
    return ec.derive_private_key(wide % (order - 1) + 1, curve)


def raw_signature(key: ec.EllipticCurvePrivateKey, algorithm: hashes.HashAlgorithm, data: bytes) -> bytes:
    """ECDSA as r || s, big-endian, each as long as the field."""
    r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(algorithm)))
    size = key.curve.key_size // 8
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def der(signed: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    return signed.public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True)
class Window:
    start: dt.datetime
    end: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a certificate says of its holder."""

    name: x509.Name
    serial: int
    ca: bool = False
    path_length: int | None = None
    uses: Sequence[str] = CA_USES
    extensions: Sequence[x509.ExtensionType] = ()
    basic_constraints: bool = True


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def issue(
    subject: Subject,
    key: ec.EllipticCurvePrivateKey,
    issuer: Issued | None,
    window: Window,
    algorithm: hashes.SHA256 | hashes.SHA384,
) -> Issued:
    """Certify `key`; by itself where `issuer` is None. The same arguments give the same bytes."""
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject.name)
        .issuer_name(issuer.certificate.subject if issuer else subject.name)
        .public_key(key.public_key())
        .serial_number(subject.serial)
        .not_valid_before(window.start)
        .not_valid_after(window.end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(x509.KeyUsage(**{use: use in subject.uses for use in _USES}), critical=True)
    )
    if subject.basic_constraints:
        builder = builder.add_extension(x509.BasicConstraints(subject.ca, subject.path_length), critical=True)
    for extension in subject.extensions:
        builder = builder.add_extension(extension, critical=False)
    return Issued(builder.sign(signer, algorithm, ecdsa_deterministic=True), key)


def revocations(issuer: Issued, window: Window, serials: Iterable[int] = ()) -> x509.CertificateRevocationList:
    """A CRL of `issuer`, SHA-256."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(window.start)
        .next_update(window.end)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(window.start).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA256())


def distinguished_name(common_name: str, **more: str) -> x509.Name:
    """CN first, then whatever `more` names by NameOID attribute."""
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    return x509.Name(parts + [x509.NameAttribute(getattr(NameOID, k), v) for k, v in more.items()])
