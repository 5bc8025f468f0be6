"""Certificates, requests and keys from outside: a guest's PKCS#10 request, an endpoint's certificate, trust anchors.

The first byte says which; the rest is DER, or PEM.
"""

from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fuzz.contract import NOW, Target
from fuzz.mutation import Mutator, pem_blocks, to_pem
from fuzz.targets.token import _WINDOW, ADMIN, SIGNER
from fuzz.targets.token import CA as ISSUER

from antechamber.broker.admin_token import load_ed25519_public
from antechamber.broker.authority import Authority
from antechamber.client.verify import public_key
from antechamber.errors import ConfigError
from antechamber.evidence.anchors import Anchors
from antechamber.evidence.bundle import sha384
from antechamber.evidence.chain import _verify_roles
from antechamber.simulator import authority
from antechamber.simulator.authority import Subject, derive_key
from antechamber.simulator.intel import IntelPki

GUESTS = Authority(ISSUER.certificate, ISSUER.key)
KEY = derive_key(bytes(32), "certificate/guest", ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
NAMES = ("a.example", "127.0.0.1")


def _request(raw: bytes) -> None:
    """A certificate comes out only for the key that was measured, and only for allowed names."""
    chain = GUESTS.certify(raw, tls=sha384(SPKI), names=NAMES, now=NOW)
    leaf = x509.load_pem_x509_certificates(chain)[0]
    assert leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == SPKI
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(n.value) for n in names} <= set(NAMES)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def _endpoint(raw: bytes) -> None:
    assert public_key(raw)


def _anchor(raw: bytes) -> None:
    text = raw.decode("utf-8", "replace")
    anchors = Anchors.parse(intel=text, nvidia=text, error=ConfigError, code="config.value")
    assert len(anchors.nvidia_spki) == 32
    assert len(anchors.root_key_id) == 48
    assert str(anchors)


def _chain(raw: bytes) -> None:
    """The PCK chain's certificates, which may be any DER under three names."""

    def refuse(reason: str, detail: str) -> ConfigError:
        return ConfigError(f"quote.{reason}", detail, hint="")

    _verify_roles(raw, (frozenset({"signer"}), frozenset({"tokens"})), bytes(48), refuse)  # type: ignore[arg-type]


def _admin(raw: bytes) -> None:
    load_ed25519_public(raw)


KINDS: tuple[Callable[[bytes], None], ...] = (_request, _endpoint, _anchor, _chain, _admin)


def run(data: bytes) -> None:
    if data:
        KINDS[data[0] % len(KINDS)](data[1:])


def csr(key: ec.EllipticCurvePrivateKey, *names: x509.GeneralName) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return b"\0" + builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def seeds() -> list[bytes]:
    subject = Subject(
        name=authority.distinguished_name("guest", COUNTRY_NAME="US"), serial=3, uses=("digital_signature",)
    )
    leaf = authority.issue(subject, KEY, ISSUER, _WINDOW, SHA256())
    pem = authority.pem(leaf.certificate).encode()
    two = authority.pem(SIGNER.certificate) + authority.pem(ISSUER.certificate)
    other = derive_key(bytes(32), "certificate/other", ec.SECP384R1())
    public = ADMIN.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return [
        csr(KEY, x509.DNSName("a.example")),
        csr(KEY),
        csr(KEY, x509.DNSName("b.example")),
        csr(KEY, x509.RFC822Name("a@b")),
        csr(other),
        b"\1" + leaf.certificate.public_bytes(Encoding.DER),
        b"\2" + pem,
        b"\2" + IntelPki(NOW, seed=bytes(32)).root_pem.encode(),
        b"\3" + two.encode(),
        b"\4" + public,
    ]


def mutate(m: Mutator, data: bytes) -> bytes:
    kind = data[0] % len(KINDS)
    if kind == 0:
        return data[:1] + m.certificate(data[1:], KEY, SHA256())
    if kind == 1:
        return data[:1] + m.certificate(data[1:], ISSUER.key, SHA256())
    blocks = pem_blocks(data[1:])
    at = m.random.randrange(len(blocks))
    blocks[at] = m.certificate(blocks[at], ISSUER.key, SHA256())
    return data[:1] + to_pem(blocks)


TARGET = Target(name="certificate", run=run, seeds=seeds, mutate=mutate, max_len=1 << 14)
