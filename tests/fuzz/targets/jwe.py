"""The JWE that carries a key: whatever comes, it opens to what was sealed, or is refused. First byte: which TEE key."""

import functools
import json

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from fuzz.contract import Target
from fuzz.mutation import Mutator, unbase64

from antechamber.broker import kem
from antechamber.broker.jwe import ECDH, TeeKey, seal
from antechamber.broker.messages import b64url
from antechamber.simulator.authority import derive_bytes, derive_key

PLAIN = b"the model key, 32 bytes: no other"
CEK = derive_bytes(bytes(32), "jwe/cek", 32)
CURVES = {"P-256": ec.SECP256R1(), "P-521": ec.SECP521R1()}
_INFO = len(ECDH).to_bytes(4, "big") + ECDH.encode() + bytes(8) + (256).to_bytes(4, "big")  # RFC 7518, 4.6.2


@functools.cache
def keys() -> tuple[TeeKey, ...]:
    """The same in every run, as the corpus is for them."""
    curves = (TeeKey(derive_key(bytes(32), f"jwe/{name}", curve)) for name, curve in CURVES.items())
    return (*curves, TeeKey(_rsa()), TeeKey(MLKEM768PrivateKey.from_seed_bytes(bytes(64))))


def _rsa() -> rsa.RSAPrivateKey:
    p, q, e = _prime("p"), _prime("q"), 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(e, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key()


def _prime(label: str) -> int:
    number = int.from_bytes(derive_bytes(bytes(32), f"jwe/{label}", 128), "big") | 3 << 1022 | 1
    while any(number % small == 0 for small in (3, 5, 7, 11, 13, 17, 19, 65537)) or pow(2, number - 1, number) != 1:
        number += 2
    return number


def run(data: bytes) -> None:
    if not data:
        return
    with keys()[data[0] % len(keys())].open(data[1:]) as plain:
        assert bytes(plain) == PLAIN, "it opens to what nobody sealed"


def seeds() -> list[bytes]:
    sealed = [bytes([i]) + seal(key.public_jwk, PLAIN) for i, key in enumerate(keys())]
    zipped = [bytes([0]) + resealed(0, _header(sealed[0]) | {"zip": "DEF"}, PLAIN)]
    aad = json.loads(sealed[0][1:]) | {"aad": "eyJ9"}
    return [*sealed, *zipped, bytes([0]) + json.dumps(aad).encode(), bytes([1]) + sealed[0][1:]]


def _header(data: bytes) -> dict[str, object]:
    value = json.loads(data[1:])["protected"]
    header: dict[str, object] = json.loads(unbase64(value + "=" * (-len(value) % 4)))
    return header


def resealed(which: int, header: object, plain: bytes, wrapped: bytes | None = None, iv: bytes = bytes(12)) -> bytes:
    """A JWE whose every other part is right, under any header and any wrapped key."""
    private = keys()[which].private
    if wrapped is None:
        if isinstance(private, rsa.RSAPrivateKey):
            wrapped = private.public_key().encrypt(CEK, padding.OAEP(padding.MGF1(SHA256()), SHA256(), None))
        elif isinstance(private, MLKEM768PrivateKey):
            kek, ciphertext = kem.encapsulate(private.public_key().public_bytes_raw())
            wrapped = aes_key_wrap(kek, CEK)
            if isinstance(header, dict) and isinstance(header.get("ek"), str):
                header = header | {"ek": b64url(ciphertext)}
        else:
            ours = derive_key(bytes(32), "jwe/ephemeral", private.curve)
            kek = ConcatKDFHash(SHA256(), 32, _INFO).derive(ours.exchange(ec.ECDH(), private.public_key()))
            wrapped = aes_key_wrap(kek, CEK)
            numbers, size = ours.public_key().public_numbers(), (private.curve.key_size + 7) // 8
            x, y = (b64url(n.to_bytes(size, "big")) for n in (numbers.x, numbers.y))
            if isinstance(header, dict) and header.get("epk") is not None and isinstance(header["epk"], dict):
                header = header | {"epk": header["epk"] | {"x": x, "y": y}}
    protected = b64url(json.dumps(header, separators=(",", ":")).encode("utf-8", "replace"))
    sealed = AESGCM(CEK).encrypt(iv or bytes(12), plain, protected.encode())
    parts = {"encrypted_key": wrapped, "iv": iv, "ciphertext": sealed[:-16], "tag": sealed[-16:]}
    return json.dumps({"protected": protected} | {k: b64url(v) for k, v in parts.items()}).encode()


def mutate(m: Mutator, data: bytes) -> bytes:
    which = data[0] % len(keys())
    match m.random.randrange(4):
        case 0:  # one part
            return data[:1] + json.dumps(m.json(json.loads(data[1:]))).encode()
        case 1:  # another header, well sealed
            return data[:1] + resealed(which, m.json(_header(data)), PLAIN)
        case 2:  # another wrapped key
            return data[:1] + resealed(which, _header(data), PLAIN, m.bytes(bytes(256 if which == 2 else 40)))
        case _:
            return bytes([m.random.randrange(len(keys()))]) + data[1:]


WORDS = (
    "alg", "enc", "epk", "ek", kem.KEM, "AKP", "pub", "zip", "DEF", "crit", "apu", "apv", "p2c", "jku", "kid",
    "crv", "kty", "x", "y", "EC", "P-256", "P-521", "P-384", "A256GCM", "A128GCM", "A128CBC-HS256", ECDH,
    "RSA-OAEP-256", "RSA1_5", "dir", "ECDH-ES", "protected", "encrypted_key", "iv", "ciphertext", "tag", "aad",
    "header", "recipients",
)  # fmt: skip
TARGET = Target(name="jwe", run=run, seeds=seeds, mutate=mutate, words=WORDS, max_len=1 << 14)
