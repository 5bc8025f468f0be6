"""TEE keys, opening a Response, and judging a token: with joserfc and `cryptography`, never with our own parsers."""

import base64
import hashlib
import itertools
import json
import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import rfc8785
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwe, jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, RSAKey

Kind = Literal["P-256", "P-521", "RSA-OAEP-256", "RSA1_5", "ML-KEM-768"]
_KEM = b"ML-KEM-768+A192KW"
_CURVES = {"P-256": ec.SECP256R1, "P-521": ec.SECP521R1}
warnings.filterwarnings("ignore", category=SecurityWarning)  # RSA1_5 and EdDSA are what the protocol has


def b64u(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64u(text: str) -> bytes:
    """Raises ValueError for padding and for any other alphabet."""
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise ValueError(f"not base64url without padding: {text[:40]!r}")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _number(value: int, size: int | None = None) -> str:
    return b64u(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


@dataclass(frozen=True, slots=True, repr=False)
class TeeKey:
    """A client's key, with exactly the members that a server hashes."""

    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | MLKEM768PrivateKey
    jwk: dict[str, str]

    @classmethod
    def generate(cls, kind: Kind = "P-256") -> "TeeKey":
        if kind == "ML-KEM-768":
            kem = MLKEM768PrivateKey.generate()
            return cls(kem, {"kty": "AKP", "alg": _KEM.decode(), "pub": b64u(kem.public_key().public_bytes_raw())})
        if kind in ("RSA-OAEP-256", "RSA1_5"):
            key = rsa.generate_private_key(65537, 2048)
            n = key.public_key().public_numbers()
            return cls(key, {"kty": "RSA", "alg": kind, "n": _number(n.n), "e": _number(n.e)})
        point = ec.generate_private_key(_CURVES[kind]())
        size, at = (point.key_size + 7) // 8, point.public_key().public_numbers()
        coordinates = {"x": _number(at.x, size), "y": _number(at.y, size)}
        return cls(point, {"kty": "EC", "crv": kind, "alg": "ECDH-ES+A256KW", **coordinates})

    def open(self, body: bytes) -> tuple[str, bytes]:
        """The header's text and the plaintext. Raises ValueError for whatever a CoCo client would not open."""
        sealed = json.loads(body)
        names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
        if not isinstance(sealed, dict) or set(sealed) - {"aad"} != set(names):
            raise ValueError(f"members are {sorted(sealed)[:8]}")
        parts = {name: unb64u(sealed[name]) for name in names}
        if len(parts["iv"]) != 12 or len(parts["tag"]) != 16:
            raise ValueError("iv is not 12 bytes, or tag not 16")
        header = json.loads(parts["protected"])
        if header.get("alg") != self.jwk["alg"] or header.get("enc") != "A256GCM":
            raise ValueError(f"sealed with {header.get('alg')}, {header.get('enc')}")
        if isinstance(self.private, MLKEM768PrivateKey):
            return parts["protected"].decode(), self._open_kem(header, sealed["protected"], parts)
        pem = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        key = (RSAKey if isinstance(self.private, rsa.RSAPrivateKey) else ECKey).import_key(pem)
        compact = ".".join(sealed[name] for name in names)
        try:
            opened = jwe.decrypt_compact(compact, key, algorithms=[header["alg"], "A256GCM"])
        except (JoseError, ValueError) as e:
            raise ValueError(f"does not open: {type(e).__name__}") from e
        return parts["protected"].decode(), opened.plaintext or b""

    def _open_kem(self, header: dict[str, Any], protected: str, parts: dict[str, bytes]) -> bytes:
        from Crypto.Hash import KMAC256

        shared = self.private.decapsulate(unb64u(header["ek"]))  # type: ignore[union-attr]
        context = len(_KEM).to_bytes(4, "big") + _KEM + (192).to_bytes(4, "big")
        kek = KMAC256.new(key=shared, mac_len=24, custom=b"", data=context).digest()
        cek = aes_key_unwrap(kek, parts["encrypted_key"])
        return AESGCM(cek).decrypt(parts["iv"], parts["ciphertext"] + parts["tag"], protected.encode())


def coco_header(text: str) -> str:
    """The header as a CoCo client writes it again to get the AAD: alg, enc, the rest sorted, compact."""
    value = json.loads(text)
    first = {name: value.pop(name) for name in ("alg", "enc")}
    rest = json.loads(json.dumps(value, sort_keys=True))
    return json.dumps(first | rest, separators=(",", ":"))


def runtime_digest(nonce: str, jwk: dict[str, str], additional: str | None) -> bytes:
    """SHA-384 over JCS of the runtime data; `additional` is None for a device's."""
    bound: dict[str, Any] = {"nonce": nonce, "tee-pubkey": jwk}
    if additional is not None:
        bound["additional-evidence"] = additional
    return hashlib.sha384(rfc8785.dumps(bound)).digest()


@dataclass(frozen=True, slots=True)
class Token:
    """A verified token's header and claims."""

    header: dict[str, Any]
    claims: dict[str, Any]


def verify_token(token: str, ca_pem: bytes | None, now: float) -> Token:
    """As Trustee verifies one: the header's jwk with x5c, leaf first, each issued by the next, up to the CA; `exp`.

    Without `ca_pem` the chain is only followed. Raises ValueError with what Trustee would refuse.
    Source: Trustee, kbs/src/crypto/jwt.rs.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("not a JWT of three parts")
    header = json.loads(unb64u(parts[0]))
    jwk = header.get("jwk")
    if not isinstance(jwk, dict) or not isinstance(jwk.get("x5c"), list) or not jwk["x5c"]:
        raise ValueError("the header has no jwk with x5c")
    chain = [x509.load_der_x509_certificate(base64.b64decode(c)) for c in jwk["x5c"]]
    own = {name: value for name, value in jwk.items() if name != "x5c"}
    key = (RSAKey if own.get("kty") == "RSA" else ECKey).import_key(own)
    if key.public_key.public_numbers() != chain[0].public_key().public_numbers():  # type: ignore[union-attr]
        raise ValueError("the leaf's key is not the jwk")
    _follow(chain, None if ca_pem is None else x509.load_pem_x509_certificate(ca_pem), now)
    registry = jws.JWSRegistry(algorithms=[header["alg"]])
    registry.max_header_length = registry.max_payload_length = 1 << 20
    try:
        payload = jws.deserialize_compact(token, key, registry=registry).payload
    except JoseError as e:
        raise ValueError(f"the signature does not verify: {type(e).__name__}") from e
    claims = json.loads(payload or b"null")
    exp, nbf = claims.get("exp"), claims.get("nbf", 0)
    if not isinstance(exp, int) or isinstance(exp, bool) or exp <= now:
        raise ValueError(f"exp is {exp!r}, now is {now:.0f}")
    if not isinstance(nbf, int) or nbf > now:
        raise ValueError(f"nbf is {nbf!r}, now is {now:.0f}")
    return Token(header, claims)


def _follow(chain: list[x509.Certificate], ca: x509.Certificate | None, now: float) -> None:
    path = chain if ca is None or chain[-1] == ca else [*chain, ca]
    for certificate, issuer in itertools.pairwise(path):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError) as e:
            raise ValueError(f"{certificate.subject.rfc4514_string()} is not issued by the next") from e
    if ca is not None and path[-1] != ca:
        raise ValueError("the chain does not end at the CA")
    for certificate in path:
        if not certificate.not_valid_before_utc.timestamp() <= now <= certificate.not_valid_after_utc.timestamp():
            raise ValueError(f"{certificate.subject.rfc4514_string()} is not valid now")


POINTERS = (
    "/tdx/attester_runtime_data/tee-pubkey",
    "/tdx/attester_user_data/tee-pubkey",
    "/customized_claims/runtime_data/tee-pubkey",
    "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey",
    "/tee-pubkey",
)


def tee_pubkey(claims: dict[str, Any]) -> tuple[str, Any]:
    """The first pointer that leads to a key, and that key. Raises ValueError."""
    for pointer in POINTERS:
        found: Any = claims
        for name in pointer.split("/")[1:]:
            found = found.get(name) if isinstance(found, dict) else None
        if found is not None:
            return pointer, found
    raise ValueError("no pointer of Trustee's leads to a tee-pubkey")
