"""The JWE that carries a resource. Source: RFC 7516, RFC 7518; KBS protocol 0.4.0, response.

Built from `cryptography`'s primitives and not from joserfc, because joserfc 1.8 cannot give these bytes: it writes
`epk` as crv, x, y, kty (the order must be crv, kty, x, y), puts it in the unprotected header of a flattened JWE, and
recomputes the AAD from the parsed header when it opens one. The opening side is also part of the guest's start-up.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import urandom
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from antechamber.broker import kem
from antechamber.broker.messages import Response, b64url, parse_pubkey, unb64url
from antechamber.errors import BrokerDenied, MalformedEvidence
from antechamber.secret import Secret

ECDH = "ECDH-ES+A256KW"
OAEP = "RSA-OAEP-256"
_PARAMETER = {ECDH: "epk", kem.KEM: "ek"}  # what each algorithm adds to the header
_CURVES: dict[str, type[ec.EllipticCurve]] = {"P-256": ec.SECP256R1, "P-521": ec.SECP521R1}
_NAMES = {"secp256r1": "P-256", "secp521r1": "P-521"}
# RFC 7518, 4.6.2: AlgorithmID, empty PartyUInfo and PartyVInfo, SuppPubInfo = 256 bits.
_OTHER_INFO = len(ECDH).to_bytes(4, "big") + ECDH.encode() + bytes(8) + (256).to_bytes(4, "big")


def _refuse(detail: str) -> BrokerDenied:
    return BrokerDenied("broker.jwe", detail, hint="the broker must seal to this session's key, without RSA1_5")


def _oaep() -> padding.OAEP:
    return padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)


def _kek(private: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey) -> bytes:
    return ConcatKDFHash(SHA256(), 32, _OTHER_INFO).derive(private.exchange(ec.ECDH(), public))


def _point(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """crv, kty, x, y, in this order."""
    numbers, size = key.public_numbers(), (key.key_size + 7) // 8
    x, y = (b64url(n.to_bytes(size, "big")) for n in (numbers.x, numbers.y))
    return {"crv": _NAMES[key.curve.name], "kty": "EC", "x": x, "y": y}


def _load_point(crv: str, x: bytes, y: bytes) -> ec.EllipticCurvePublicKey:
    """Raises ValueError for a point that is not on the curve."""
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), _CURVES[crv]())
    return numbers.public_key()


@dataclass(frozen=True, slots=True, repr=False)
class TeeKey:
    """The guest's key for the broker's answers: EC P-256 as generated; the others as other clients have them."""

    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | MLKEM768PrivateKey

    @classmethod
    def generate(cls) -> "TeeKey":
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> "TeeKey":
        """Raises BrokerDenied `broker.jwe` for a key of another kind."""
        key = load_pem_private_key(pem, None)
        if isinstance(key, rsa.RSAPrivateKey | MLKEM768PrivateKey) or (
            isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _NAMES
        ):
            return cls(key)
        raise _refuse("the TEE key is neither EC P-256, EC P-521, RSA nor ML-KEM-768")

    @property
    def public_jwk(self) -> dict[str, str]:
        """`tee-pubkey`, with exactly the members that the protocol hashes."""
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            return {"alg": ECDH, **_point(self.private.public_key())}
        if isinstance(self.private, MLKEM768PrivateKey):
            return {"alg": kem.KEM, "kty": "AKP", "pub": b64url(self.private.public_key().public_bytes_raw())}
        numbers = self.private.public_key().public_numbers()
        n, e = (b64url(v.to_bytes((v.bit_length() + 7) // 8, "big")) for v in (numbers.n, numbers.e))
        return {"alg": OAEP, "kty": "RSA", "n": n, "e": e}

    def open(self, jwe: bytes) -> Secret:
        """Decrypt a flattened JWE; the AAD is its protected header as received. Raises BrokerDenied `broker.jwe`."""
        try:
            response = Response.parse(jwe)
            header = response.header()
            cek = self._unwrap(header, response.encrypted_key)
        except MalformedEvidence as e:
            raise _refuse(e.detail) from e
        except (InvalidUnwrap, ValueError) as e:
            raise _refuse("the content key does not unwrap") from e
        if len(cek) != 32:
            raise _refuse(f"the content key has {len(cek)} bytes, not 32")
        sealed = response.ciphertext + response.tag
        plain = bytearray(len(response.ciphertext))
        try:
            AESGCM(cek).decrypt_into(response.iv, sealed, response.protected.encode(), plain)
        except InvalidTag as e:
            raise _refuse("the content does not authenticate") from e
        return Secret(plain)

    def _unwrap(self, header: Mapping[str, Any], wrapped: bytes) -> bytes:
        alg, allowed = header.get("alg"), self.public_jwk["alg"]
        if alg != allowed or header.get("enc") != "A256GCM":
            raise _refuse(f"sealed with {str(alg)[:32]}, {str(header.get('enc'))[:32]}, not {allowed}, A256GCM")
        extra = set(header) - {"alg", "enc", _PARAMETER.get(allowed)}
        if extra:  # `zip`, `crit`, `apu`: none is in the protocol, and each would change what is computed
            raise _refuse(f"header has {', '.join(map(ascii, sorted(extra)))[:60]}")
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.decrypt(wrapped, _oaep())
        if isinstance(self.private, MLKEM768PrivateKey):
            return aes_key_unwrap(kem.decapsulate(self.private, unb64url(header.get("ek"), "ek")), wrapped)
        return aes_key_unwrap(_kek(self.private, self._ephemeral(header.get("epk"))), wrapped)

    def _ephemeral(self, epk: object) -> ec.EllipticCurvePublicKey:
        own = self.public_jwk
        if not isinstance(epk, dict) or set(epk) != {"crv", "kty", "x", "y"} or epk["crv"] != own["crv"]:
            raise _refuse(f"epk is not a point on {own.get('crv')}")
        key = parse_pubkey(epk | {"alg": ECDH})
        return _load_point(key["crv"], unb64url(key["x"], "x"), unb64url(key["y"], "y"))

    def __repr__(self) -> str:
        return f"<TeeKey, {self.public_jwk['alg']}>"


def seal(jwk: Mapping[str, str], plaintext: bytes) -> bytes:
    """Seal to a `tee-pubkey`. Header order: alg, enc, then epk {crv, kty, x, y} or ek; compact; no other order ever.

    CoCo clients rebuild the AAD from the parsed header in that order.
    Raises MalformedEvidence `kbs.pubkey`, ConfigError `install.pycryptodome`.
    """
    key, cek, iv = parse_pubkey(dict(jwk)), AESGCM.generate_key(256), urandom(12)
    try:
        parameters, wrapped = _wrap(key, cek)
    except ValueError as e:
        raise MalformedEvidence("kbs.pubkey", "tee-pubkey is not a valid key", hint="send a fresh key") from e
    header = {"alg": key["alg"], "enc": "A256GCM"} | parameters
    protected = b64url(json.dumps(header, separators=(",", ":")).encode())
    sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode())
    return Response(protected, wrapped, iv, sealed[:-16], sealed[-16:]).build()


def _wrap(key: Mapping[str, str], cek: bytes) -> tuple[dict[str, Any], bytes]:
    """What the header says of it, and the wrapped content key. Raises ValueError for an invalid key."""
    if key["kty"] == "AKP":
        kek, ciphertext = kem.encapsulate(unb64url(key["pub"], "pub"))
        return {"ek": b64url(ciphertext)}, aes_key_wrap(kek, cek)
    if key["kty"] == "EC":
        public = _load_point(key["crv"], unb64url(key["x"], "x"), unb64url(key["y"], "y"))
        ephemeral = ec.generate_private_key(public.curve)
        return {"epk": _point(ephemeral.public_key())}, aes_key_wrap(_kek(ephemeral, public), cek)
    n, e = (int.from_bytes(unb64url(key[name], name), "big") for name in ("n", "e"))
    return {}, rsa.RSAPublicNumbers(e, n).public_key().encrypt(cek, _oaep())
