"""Certificate authorities: one for guests' own TLS keys, one for the broker's certificate, one for its tokens."""

import datetime as dt
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from antechamber.errors import BrokerDenied, ConfigError, MalformedEvidence
from antechamber.evidence.bundle import sha384
from antechamber.evidence.certificates import CERTIFICATE_ERRORS

MAX_CSR = 16 << 10  # bytes
GUEST_DAYS = 7
_BACKDATE = dt.timedelta(minutes=5)  # clocks differ
_NAME = re.compile(r"[A-Za-z0-9:]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?\Z")
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


@dataclass(frozen=True, slots=True, repr=False)
class Authority:
    """A CA: its certificate and key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, name: str, *, now: int, days: int = 3650) -> "Authority":
        """A root over a fresh P-256 key, path length 0."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject, key.public_key(), now, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        return cls(builder.sign(key, SHA256()), key)

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> "Authority":
        """From PEM. Raises ConfigError `broker.authority`."""
        return cls(_load_certificate(certificate), load_ec_key(key))

    def issue(
        self,
        public: ec.EllipticCurvePublicKey,
        name: str,
        *,
        names: Sequence[str],
        usage: Iterable[x509.ObjectIdentifier],
        now: int,
        days: int,
    ) -> x509.Certificate:
        """An end-entity certificate (CA:FALSE), never longer than the CA's own."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        builder = _builder(subject, self.certificate.subject, public, now, days, self.certificate.not_valid_after_utc)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage("digital_signature"), critical=True)
        own = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        aki = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
        builder = builder.add_extension(aki, critical=False)
        if usages := list(usage):
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(map(general_name, names)), critical=False)
        return builder.sign(self.key, SHA256())

    def serve(self, names: Sequence[str], *, now: int, days: int) -> tuple[bytes, bytes]:
        """A server's certificate chain and fresh key, both PEM. Raises ConfigError `broker.names`."""
        if not names or not all(map(_NAME.match, names)):
            raise ConfigError("broker.names", f"names are {names!r}", hint="give DNS names and addresses of the broker")
        key = ec.generate_private_key(ec.SECP256R1())
        usage = [ExtendedKeyUsageOID.SERVER_AUTH]
        leaf = self.issue(key.public_key(), names[0], names=names, usage=usage, now=now, days=days)
        return _pem(leaf), key_pem(key)

    def certify(self, request_der: bytes, *, tls: str, names: Sequence[str], now: int) -> bytes:
        """A guest's certificate chain (PEM), for the key that it measured and no other.

        `tls`: content of the `tls` event of the verified Evidence, `sha384:<hex>` of the SubjectPublicKeyInfo.
        `names`: those the rule allows; the request asks for some of them, or, naming none, gets all.
        Raises MalformedEvidence `certificate.request`, BrokerDenied `certificate.key`, `certificate.names`.
        """
        request, public = _parse_request(request_der)
        spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if sha384(spki) != tls:
            raise BrokerDenied(
                "certificate.key", f"the request is for {sha384(spki)[:23]}, the log has {tls[:23]}",
                hint="request it for the TLS key that RTMR3 holds",
            )  # fmt: skip
        wanted = _requested(request) or tuple(names)
        if refused := sorted(set(wanted) - set(names)):
            raise BrokerDenied(
                "certificate.names", f"{', '.join(map(ascii, refused))[:200]} not allowed", hint="ask for allowed names"
            )
        usage = [ExtendedKeyUsageOID.SERVER_AUTH]
        leaf = self.issue(public, wanted[0], names=wanted, usage=usage, now=now, days=GUEST_DAYS)
        return _pem(leaf) + _pem(self.certificate)

    def pem(self) -> tuple[bytes, bytes]:
        """Certificate and key."""
        return _pem(self.certificate), key_pem(self.key)


def _parse_request(der: bytes) -> tuple[x509.CertificateSigningRequest, ec.EllipticCurvePublicKey]:
    hint = "send PKCS#10, DER, over an EC P-256 or P-384 key, signed by it"
    if len(der) > MAX_CSR:
        raise MalformedEvidence("certificate.request", f"{len(der)} bytes, at most {MAX_CSR}", hint=hint)
    try:
        request = x509.load_der_x509_csr(der)
        public, signed = request.public_key(), request.is_signature_valid
    except (*CERTIFICATE_ERRORS, InvalidSignature) as e:
        raise MalformedEvidence("certificate.request", "not a PKCS#10 request", hint=hint) from e
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1 | ec.SECP384R1):
        raise MalformedEvidence("certificate.request", "not an EC P-256 or P-384 key", hint=hint)
    if not signed:
        raise MalformedEvidence("certificate.request", "not signed by its own key", hint=hint)
    return request, public


def _requested(request: x509.CertificateSigningRequest) -> tuple[str, ...]:
    try:
        listed = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    except CERTIFICATE_ERRORS as e:
        raise MalformedEvidence("certificate.request", "its extensions do not parse", hint="send DNS names") from e
    if any(not isinstance(n, x509.DNSName | x509.IPAddress) for n in listed):
        raise MalformedEvidence("certificate.request", "a name is neither DNS nor address", hint="send DNS names")
    return tuple(str(n.value) for n in listed)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: int,
    days: int,
    latest: dt.datetime | None = None,
) -> x509.CertificateBuilder:
    start = dt.datetime.fromtimestamp(now, dt.UTC)
    end = start + dt.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _BACKDATE)
        .not_valid_after(end if latest is None else min(end, latest))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*on: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in on for name in _USAGES})


def general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_ec_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises ConfigError `broker.authority`."""
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise _unusable("a key is not PEM") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unusable("a key is not EC")
    return key


def _load_certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except CERTIFICATE_ERRORS as e:
        raise _unusable("a certificate is not PEM") from e


def _unusable(detail: str) -> ConfigError:
    return ConfigError("broker.authority", detail, hint="restore what `antechamber broker init` wrote")
