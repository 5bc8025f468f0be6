import datetime as dt
from collections.abc import Callable
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store
from hypothesis import given
from hypothesis import strategies as st

from antechamber.broker.authority import Authority
from antechamber.errors import AgentError, ConfigError, MalformedEvidence
from antechamber.evidence.bundle import sha384

NOW = 1_790_000_000
CA = Authority.create("test", now=NOW)
KEY = ec.generate_private_key(ec.SECP256R1())
NAMES = ("llm.example.org", "10.0.0.1")


def spki(key: ec.EllipticCurvePrivateKey = KEY) -> str:
    return sha384(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = KEY, *names: x509.GeneralName) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(AgentError) as refused:
        call()
    return refused.value.code


def certify(der: bytes, tls: str | None = None) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(CA.certify(der, tls=tls or spki(), names=NAMES, now=NOW))


def test_certify_issues_for_the_measured_key_and_the_rules_names() -> None:
    leaf, ca = certify(request())
    assert ca == CA.certificate
    leaf.verify_directly_issued_by(ca)
    assert leaf.not_valid_after_utc - dt.datetime.fromtimestamp(NOW, dt.UTC) == dt.timedelta(days=7)
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(n.value) for n in names] == list(NAMES)


def test_certify_issues_what_a_strict_verifier_accepts() -> None:
    leaf, ca = certify(request())
    at = dt.datetime.fromtimestamp(NOW + 60, dt.UTC)
    verifier = PolicyBuilder().store(Store([ca])).time(at).build_server_verifier(x509.DNSName(NAMES[0]))
    assert len(verifier.verify(leaf, [])) == 2


def test_certify_gives_the_names_that_the_request_asks_for() -> None:
    (leaf, _) = certify(request(KEY, x509.DNSName(NAMES[0])))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [n.value for n in names] == [NAMES[0]]


@pytest.mark.parametrize("name", ["evil.example.org", "*.example.org", "example.org"])
def test_certify_refuses_a_name_outside_the_rule(name: str) -> None:
    assert code_of(lambda: certify(request(KEY, x509.DNSName(NAMES[0]), x509.DNSName(name)))) == "certificate.names"


def test_certify_refuses_a_key_that_was_not_measured() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    assert code_of(lambda: certify(request(other))) == "certificate.key"


def test_certify_refuses_a_request_of_other_kinds() -> None:
    assert code_of(lambda: certify(request(rsa.generate_private_key(65537, 2048)))) == "certificate.request"
    assert code_of(lambda: certify(request(KEY, x509.RFC822Name("a@example.org")))) == "certificate.request"
    assert code_of(lambda: certify(bytes(20_000))) == "certificate.request"


def test_certify_refuses_a_request_that_its_key_did_not_sign() -> None:
    der = bytearray(request())
    der[-1] ^= 1
    assert code_of(lambda: certify(bytes(der))) == "certificate.request"


@given(st.binary(max_size=200))
def test_certify_refuses_any_bytes(raw: bytes) -> None:
    with suppress(MalformedEvidence):
        certify(raw)
        pytest.fail("issued a certificate for noise")


def test_a_guest_certificate_never_outlives_its_ca() -> None:
    late = int(CA.certificate.not_valid_after_utc.timestamp()) - 3600
    leaf = x509.load_pem_x509_certificates(CA.certify(request(), tls=spki(), names=NAMES, now=late))[0]
    assert leaf.not_valid_after_utc == CA.certificate.not_valid_after_utc


def test_authority_loads_what_it_wrote_and_refuses_the_rest() -> None:
    assert Authority.load(*CA.pem()).certificate == CA.certificate
    assert code_of(lambda: Authority.load(b"no", CA.pem()[1])) == "broker.authority"
    assert code_of(lambda: Authority.load(CA.pem()[0], b"no")) == "broker.authority"
    with pytest.raises(ConfigError):
        CA.serve(["bad name"], now=NOW, days=1)


def test_certify_refuses_a_request_of_an_unknown_version() -> None:
    """Found by fuzzing: pyca's InvalidVersion is no ValueError, and became a fault of the broker's."""
    der = request().replace(b"\x02\x01\x00", b"\x02\x01\x01", 1)
    assert code_of(lambda: certify(der)) == "certificate.request"
