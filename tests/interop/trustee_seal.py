"""What the double of Trustee computes: digests, evidence, tokens, sealing. Written from the reference, not from us."""

import base64
import hashlib
import json
import os
import time
from dataclasses import dataclass
from typing import Any

import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding
from interop.kit.jose import b64u, unb64u
from joserfc import jwt
from joserfc.jwk import ECKey

MEMBERS = {"EC": ("alg", "crv", "kty", "x", "y"), "RSA": ("alg", "e", "kty", "n"), "AKP": ("alg", "kty", "pub")}
EL_HEADER = 69  # bytes: the log's first record where there is no CCEL
_DIGESTS = {0x0B: 32, 0x0C: 48, 0x0D: 64, 0x12: 32}  # bytes, by TPM algorithm id


class Refused(Exception):
    """What Trustee writes to its log and does not say."""


def reserialised(jwk: Any) -> dict[str, str]:
    """The key as serde reads it: other members are dropped, so their client hashes something else."""
    members = MEMBERS.get(jwk.get("kty")) if isinstance(jwk, dict) else None
    if members is None or not all(isinstance(jwk.get(name), str) for name in members):
        raise Refused("tee-pubkey is no TeePubKey")
    return {name: jwk[name] for name in members}


def digest(nonce: str, jwk: dict[str, str], additional: str | None) -> bytes:
    bound: dict[str, Any] = {"nonce": nonce, "tee-pubkey": jwk}
    return hashlib.sha384(
        rfc8785.dumps(bound if additional is None else bound | {"additional-evidence": additional})
    ).digest()


def verify_evidence(tee: str, primary: Any, additional: str, nonce: str, jwk: dict[str, str], init: str | None) -> Any:
    """Claims of evidence whose bindings hold; no signature is verified here. Raises Refused."""
    expected = digest(nonce, jwk, additional)
    if additional:
        _verify_devices(json.loads(additional), digest(nonce, jwk, None)[:32])
    if tee == "sample":
        if set(primary) != {"svn", "report_data"} or base64.b64decode(primary["report_data"]) != expected:
            raise Refused("sample: report_data")
        return {"sample": {"svn": primary["svn"], "report_data": primary["report_data"]}}
    if set(primary) != {"cc_eventlog", "quote"}:
        raise Refused(f"tdx: members {sorted(primary)}")
    quote = base64.b64decode(primary["quote"], validate=True)
    version = int.from_bytes(quote[:2], "little")
    body = quote[48:] if version == 4 else quote[54:]
    if body[520:584] != expected + bytes(16):
        raise Refused("tdx: REPORTDATA")
    if init is not None and body[184:232] != init_digest(init):
        raise Refused("tdx: MRCONFIGID")
    rtmrs = [body[328 + 48 * i : 376 + 48 * i] for i in range(4)]
    log = primary["cc_eventlog"]
    if log and replay(base64.b64decode(log, validate=True)) != rtmrs:
        raise Refused("tdx: the event log does not replay")
    return {"tdx": {"quote": {"body": {f"rtmr_{i}": value.hex() for i, value in enumerate(rtmrs)}}}}


def init_digest(text: str) -> bytes:
    """As MRCONFIGID has it, 48 bytes."""
    algorithm = text.split('algorithm = "', 1)[1].split('"', 1)[0]
    return hashlib.new(algorithm, text.encode()).digest()[:48].ljust(48, b"\0")


def _verify_devices(devices: Any, nonce: bytes) -> None:
    for device in devices["nvidia"]["device_evidence_list"]:
        if set(device) != {"arch", "uuid", "evidence", "certificate"}:
            raise Refused("nvidia: members")
        if base64.b64decode(device["evidence"], validate=True)[4:36] != nonce:
            raise Refused("nvidia: nonce")
        if not base64.b64decode(device["certificate"], validate=True).startswith(b"-----BEGIN CERTIFICATE"):
            raise Refused("nvidia: certificate")


def replay(log: bytes) -> list[bytes]:
    """RTMR0 to 3 after every record of a TCG2 log. Raises Refused."""
    registers = [bytes(48)] * 4
    at = 32 + int.from_bytes(log[28:32], "little")  # the header's record is of the old form
    while at + 8 <= len(log) and log[at : at + 8] not in (b"\xff" * 8, bytes(8)):
        index, count = (int.from_bytes(log[at + o : at + o + 4], "little") for o in (0, 8))
        kind = int.from_bytes(log[at + 4 : at + 8], "little")
        at += 12
        for _ in range(count):
            algorithm = int.from_bytes(log[at : at + 2], "little")
            size = _DIGESTS.get(algorithm)
            if size is None:
                raise Refused(f"event log: algorithm {algorithm:#x}")
            if algorithm == 0x0C and kind != 3 and 1 <= index <= 4:  # EV_NO_ACTION extends nothing
                value = registers[index - 1] + log[at + 2 : at + 2 + size]
                registers[index - 1] = hashlib.sha384(value).digest()
            at += 2 + size
        at += 4 + int.from_bytes(log[at : at + 4], "little")
    return registers


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs tokens as Trustee's broker does with a configured certificate."""

    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]

    def token(self, claims: dict[str, Any]) -> str:
        jwk = ECKey.import_key(self.key.public_key()).as_dict(private=False)
        x5c = [base64.b64encode(c.public_bytes(Encoding.DER)).decode() for c in self.chain]
        header = {"typ": "JWT", "alg": "ES256", "jwk": {n: jwk[n] for n in ("kty", "crv", "x", "y")}}
        header["jwk"] |= {"alg": "ES256", "x5c": x5c}  # type: ignore[operator]
        return jwt.encode(header, claims, ECKey.import_key(self.key), algorithms=["ES256"])


def claims(evidence: Any, nonce: str, jwk: dict[str, str], additional: str, init: str | None, life_s: int) -> Any:
    """EAR, as Trustee's attestation service composes it for a policy that holds."""
    now = int(time.time())
    names = ("instance-identity", "configuration", "executables", "file-system", "hardware", "runtime-opaque",
             "storage-opaque", "sourced-data")  # fmt: skip
    annotated = evidence | {
        "report_data": digest(nonce, jwk, additional).hex(),
        "init_data": "" if init is None else init_digest(init).hex(),
        "runtime_data_claims": {"additional-evidence": additional, "nonce": nonce, "tee-pubkey": jwk},
        "init_data_claims": None if init is None else {},
    }
    cpu = {
        "ear.status": "affirming",
        "ear.trustworthiness-vector": dict.fromkeys(names, 0) | {"hardware": 2, "executables": 3, "configuration": 2},
        "ear.appraisal-policy-id": "default",
        "ear.veraison.annotated-evidence": annotated,
    }
    return {
        "eat_profile": "tag:github.com,2024:confidential-containers/Trustee",
        "iat": now,
        "exp": now + life_s,
        "iss": "CoCo-Attestation-Service",
        "ear.verifier-id": {"developer": "https://confidentialcontainers.org", "build": "a double"},
        "submods": {"cpu0": cpu},
    }


def seal(jwk: dict[str, str], plaintext: bytes, *, order: str = "trustee", aad: str | None = None) -> bytes:
    """A Response. `order` `enc-first` is valid RFC 7516 all the same."""
    cek, iv = os.urandom(32), os.urandom(12)
    header, wrapped = _wrap(jwk, cek)
    if order == "enc-first":
        header = {"enc": header.pop("enc"), **header}
    protected = b64u(json.dumps(header, separators=(",", ":")).encode())
    sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode())
    value = {"protected": protected, "encrypted_key": b64u(wrapped), "iv": b64u(iv)}
    value |= {"ciphertext": b64u(sealed[:-16]), "tag": b64u(sealed[-16:])}
    return json.dumps(value | ({} if aad is None else {"aad": aad})).encode()


def _wrap(jwk: dict[str, str], cek: bytes) -> tuple[dict[str, Any], bytes]:
    alg = jwk["alg"]
    header: dict[str, Any] = {"alg": alg, "enc": "A256GCM"}
    context = len(alg).to_bytes(4, "big") + alg.encode()
    if jwk["kty"] == "RSA":
        n, e = (int.from_bytes(unb64u(jwk[name]), "big") for name in ("n", "e"))
        how = padding.PKCS1v15() if alg == "RSA1_5" else padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
        return header, rsa.RSAPublicNumbers(e, n).public_key().encrypt(cek, how)
    if jwk["kty"] == "AKP":
        from Crypto.Hash import KMAC256

        shared, sent = MLKEM768PublicKey.from_public_bytes(unb64u(jwk["pub"])).encapsulate()
        kek = KMAC256.new(key=shared, mac_len=24, custom=b"", data=context + (192).to_bytes(4, "big")).digest()
        return header | {"ek": b64u(sent)}, aes_key_wrap(kek, cek)
    curve = {"P-256": ec.SECP256R1(), "P-521": ec.SECP521R1()}[jwk["crv"]]
    x, y = (int.from_bytes(unb64u(jwk[name]), "big") for name in ("x", "y"))
    ephemeral = ec.generate_private_key(curve)
    z = ephemeral.exchange(ec.ECDH(), ec.EllipticCurvePublicNumbers(x, y, curve).public_key())
    # RFC 7518, 4.6.2, one round of the Concat KDF.
    kek = hashlib.sha256(b"\0\0\0\1" + z + context + bytes(8) + (256).to_bytes(4, "big")).digest()
    at, size = ephemeral.public_key().public_numbers(), (curve.key_size + 7) // 8
    point = {"crv": jwk["crv"], "kty": "EC"} | {n: b64u(getattr(at, n).to_bytes(size, "big")) for n in ("x", "y")}
    return header | {"epk": point}, aes_key_wrap(kek, cek)
