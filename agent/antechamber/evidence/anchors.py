"""Trust anchors: the vendors' own, or explicitly another one, which makes every result say so."""

import functools
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from antechamber.errors import AgentError
from antechamber.evidence.certificates import CERTIFICATE_ERRORS

# SHA-256 of the SubjectPublicKeyInfo of "NVIDIA Device Identity CA".
NVIDIA_ROOT_SPKI = bytes.fromhex("a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4")
# SHA-384 of the public point of "Intel SGX Root CA", as dcap-qvl reports it (`root_key_id`).
INTEL_ROOT_KEY_ID = bytes.fromhex(
    "46e403bd34f05a3f2817ab9badcaacc7ffc98e0f261008cd30dae936cace18d5dcf58eef31463613de1570d516200993"
)
_REMEMBERED = 64  # anchors: a policy names them once, and every appraisal asks
VENDORS = "intel, nvidia"  # how a result names its anchors where neither is simulated


@dataclass(frozen=True, slots=True)
class Anchors:
    """`intel_root`: DER of a root that is not Intel's, or None for Intel's. `nvidia_spki`: SHA-256, 32 bytes."""

    intel_root: bytes | None
    nvidia_spki: bytes

    @classmethod
    @functools.lru_cache(_REMEMBERED)
    def parse(cls, *, intel: str, nvidia: str, error: type[AgentError], code: str) -> "Anchors":
        """From `intel` or PEM, `nvidia` or PEM."""
        root = None if intel == "intel" else _certificate(intel, error, code)
        if root is not None and key_id_of(root) == INTEL_ROOT_KEY_ID:
            root = None  # Intel's own, spelled out
        device = NVIDIA_ROOT_SPKI if nvidia == "nvidia" else spki_sha256(_certificate(nvidia, error, code))
        return cls(None if root is None else root.public_bytes(Encoding.DER), device)

    @property
    def root_key_id(self) -> bytes:
        """Of the quotes' root, as `key_id_of`."""
        if self.intel_root is None:
            return INTEL_ROOT_KEY_ID
        return _key_id_of(self.intel_root)

    @property
    def vendors(self) -> bool:
        """Whether both anchors are the vendors' own: nothing simulated verifies."""
        return self.intel_root is None and self.nvidia_spki == NVIDIA_ROOT_SPKI

    def __str__(self) -> str:
        intel = "Intel" if self.intel_root is None else "NOT INTEL'S (simulated)"
        nvidia = "NVIDIA" if self.nvidia_spki == NVIDIA_ROOT_SPKI else "NOT NVIDIA'S (simulated)"
        return f"{intel}, {nvidia}"


def _certificate(pem: str, error: type[AgentError], code: str) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        certificate.public_key()
    except CERTIFICATE_ERRORS as e:
        raise error(code, "a trust anchor is not a PEM certificate", hint="use the vendor's name, or a PEM") from e
    return certificate


def intel_name(root_key_id: bytes) -> str:
    """`intel`, or `simulated:<12 hex digits>`: how a result names the root that a quote leads to."""
    return "intel" if root_key_id == INTEL_ROOT_KEY_ID else f"simulated:{root_key_id.hex()[:12]}"


def nvidia_name(spki: bytes) -> str:
    """`nvidia`, or `simulated:<12 hex digits>`: the same for the root of a GPU's chain, by its `spki_sha256`."""
    return "nvidia" if spki == NVIDIA_ROOT_SPKI else f"simulated:{spki.hex()[:12]}"


def key_id_of(certificate: x509.Certificate) -> bytes:
    """SHA-384 of the public point, as dcap-qvl names a root; of the whole key where it is no curve's."""
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return hashlib.sha384(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()
    return hashlib.sha384(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


@functools.lru_cache(_REMEMBERED)
def _key_id_of(der: bytes) -> bytes:
    return key_id_of(x509.load_der_x509_certificate(der))


def spki_sha256(certificate: x509.Certificate) -> bytes:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()
