"""ML-KEM-768+A192KW: a shared secret from the KEM, and the key that wraps the content key from it.

Source: FIPS 203; draft-ietf-jose-pqc-kem-05, 5 (KMAC256 as NIST SP 800-185, 4); KBS protocol 0.4.0, where it is
experimental. Only a broker needs it: an agent's own TEE key is EC P-256.
"""

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

from antechamber.errors import ConfigError

KEM = "ML-KEM-768+A192KW"
PUBLIC_KEY, CIPHERTEXT = 1184, 1088  # bytes
_KEY = 24  # bytes: A192KW
# AlgorithmID with its length, and SuppPubInfo: the key's length in bits.
_CONTEXT = len(KEM).to_bytes(4, "big") + KEM.encode() + (8 * _KEY).to_bytes(4, "big")


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """The wrapping key (24 bytes) and the KEM's ciphertext, for a public key of 1184 bytes.

    Raises ValueError for a key that FIPS 203 refuses, ConfigError `install.pycryptodome`.
    """
    shared, ciphertext = MLKEM768PublicKey.from_public_bytes(public).encapsulate()
    return derive(shared), ciphertext


def decapsulate(private: MLKEM768PrivateKey, ciphertext: bytes) -> bytes:
    """The wrapping key; of a foreign ciphertext another one, which then does not unwrap. Raises ValueError."""
    return derive(private.decapsulate(ciphertext))


def derive(shared: bytes) -> bytes:
    """KMAC256(shared, context, 192 bits, "")."""
    try:
        from Crypto.Hash import KMAC256  # noqa: PLC0415  # an extra, that a guest does without
    except ImportError as e:
        raise ConfigError(
            "install.pycryptodome", "pycryptodome is not installed", hint="pip install antechamber[broker]"
        ) from e
    return KMAC256.new(key=shared, mac_len=_KEY, custom=b"", data=_CONTEXT).digest()
