import base64
import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from antechamber.broker import kem
from antechamber.broker.jwe import TeeKey, seal
from antechamber.broker.messages import b64url
from antechamber.errors import BrokerDenied, MalformedEvidence

KEY = TeeKey.generate()
RSA, KEM = TeeKey(rsa.generate_private_key(65537, 2048)), TeeKey(MLKEM768PrivateKey.generate())
KEYS = [KEY, TeeKey(ec.generate_private_key(ec.SECP521R1())), RSA, KEM]


def refused(key: TeeKey, value: Any) -> str:
    with pytest.raises(BrokerDenied) as error:
        key.open(json.dumps(value).encode())
    assert error.value.code == "broker.jwe"
    return error.value.detail


def header(value: dict[str, Any], **changes: Any) -> dict[str, Any]:
    protected = json.loads(base64.urlsafe_b64decode(value["protected"] + "==")) | changes
    return value | {"protected": b64url(json.dumps(protected, separators=(",", ":")).encode())}


@pytest.mark.parametrize("key", KEYS, ids=repr)
@pytest.mark.parametrize("size", [0, 1, 32, 70_000])
def test_seal_and_open_agree(key: TeeKey, size: int) -> None:
    with key.open(seal(key.public_jwk, bytes(size))) as plain:
        assert bytes(plain) == bytes(size)


def test_joserfc_opens_what_we_seal() -> None:
    from joserfc import jwe
    from joserfc.jwk import ECKey

    pem = KEY.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    sealed = json.loads(seal(KEY.public_jwk, b"a model key"))
    algorithms = ["ECDH-ES+A256KW", "A256GCM"]
    assert jwe.decrypt_json(sealed, ECKey.import_key(pem), algorithms=algorithms).plaintext == b"a model key"


@pytest.mark.parametrize("member", ["encrypted_key", "iv", "ciphertext", "tag"])
def test_open_refuses_a_changed_part(member: str) -> None:
    value = json.loads(seal(KEY.public_jwk, b"key"))
    value[member] = ("B" if value[member][0] != "B" else "C") + value[member][1:]
    refused(KEY, value)


def test_open_refuses_a_header_that_is_not_the_one_sealed() -> None:
    value = json.loads(seal(KEY.public_jwk, b"key"))
    text = base64.urlsafe_b64decode(value["protected"] + "==").decode()
    spaced = value | {"protected": b64url(text.replace(",", ", ").encode())}
    assert "authenticate" in refused(KEY, spaced)


@pytest.mark.parametrize(
    "change",
    [{"alg": "RSA1_5"}, {"alg": "dir"}, {"alg": "ECDH-ES"}, {"enc": "A128GCM"}, {"zip": "DEF"}, {"apu": "AA"},
     {"crit": ["x"]}, {"epk": None}],
)  # fmt: skip
def test_open_refuses_another_algorithm_or_header(change: dict[str, Any]) -> None:
    refused(KEY, header(json.loads(seal(KEY.public_jwk, b"key")), **change))


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_every_kind_of_key_comes_back_from_its_pem(key: TeeKey) -> None:
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with TeeKey.from_pem(pem).open(seal(key.public_jwk, b"key")) as plain:
        assert bytes(plain) == b"key"


@pytest.mark.parametrize("key", KEYS, ids=repr)
@pytest.mark.parametrize("alg", ["RSA1_5", "RSA-OAEP", "dir", "ML-KEM-768", "ECDH-ES"])
def test_no_key_opens_another_algorithm(key: TeeKey, alg: str) -> None:
    assert f"sealed with {alg}" in refused(key, header(json.loads(seal(key.public_jwk, b"key")), alg=alg))


def test_rsa1_5_is_refused_also_where_it_was_well_sealed() -> None:
    """Bleichenbacher's oracle is not even asked: the algorithm is read before the key is used."""
    assert isinstance(RSA.private, rsa.RSAPrivateKey)
    cek, iv = bytes(32), bytes(12)
    protected = b64url(b'{"alg":"RSA1_5","enc":"A256GCM"}')
    sealed = AESGCM(cek).encrypt(iv, b"key", protected.encode())
    wrapped = RSA.private.public_key().encrypt(cek, padding.PKCS1v15())
    parts = {"encrypted_key": wrapped, "iv": iv, "ciphertext": sealed[:-16], "tag": sealed[-16:]}
    assert "RSA1_5" in refused(RSA, {"protected": protected} | {k: b64url(v) for k, v in parts.items()})


def test_seal_refuses_rsa1_5() -> None:
    with pytest.raises(MalformedEvidence) as error:
        seal(RSA.public_jwk | {"alg": "RSA1_5"}, b"key")
    assert error.value.code == "kbs.pubkey"


@pytest.mark.parametrize("ek", ["", "AA", b64url(bytes(1087)), b64url(bytes(1088)), 5, None])
def test_open_refuses_a_kem_ciphertext_of_another(ek: object) -> None:
    refused(KEM, header(json.loads(seal(KEM.public_jwk, b"key")), ek=ek))


@pytest.mark.parametrize(
    "change",
    [{"alg": "ML-KEM-512+A128KW"}, {"pub": b64url(bytes(1183))}, {"pub": b64url(b"\xff" * 1184)}, {"kid": "1"}],
)
def test_seal_refuses_a_kem_key(change: dict[str, str]) -> None:
    with pytest.raises(MalformedEvidence) as error:
        seal(KEM.public_jwk | change, b"key")
    assert error.value.code == "kbs.pubkey"


@pytest.mark.openssl
def test_kem_derives_its_key_as_openssls_kmac256_does(tmp_path: Path) -> None:
    shared, message = bytes(range(32)), tmp_path / "context"
    name = b"ML-KEM-768+A192KW"
    message.write_bytes(len(name).to_bytes(4, "big") + name + (192).to_bytes(4, "big"))
    options = [f"hexkey:{shared.hex()}", "size:24"]
    command = ["openssl", "mac", *(word for o in options for word in ("-macopt", o)), "-in", str(message), "KMAC-256"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    assert kem.derive(shared).hex() == told.strip().lower()


def test_open_refuses_a_point_off_the_curve() -> None:
    value = json.loads(seal(KEY.public_jwk, b"key"))
    epk = {"crv": "P-256", "kty": "EC", "x": b64url(bytes(31) + b"\x05"), "y": b64url(bytes(31) + b"\x07")}
    refused(KEY, header(value, epk=epk))


def test_open_refuses_what_is_sealed_to_another_key() -> None:
    refused(TeeKey.generate(), json.loads(seal(KEY.public_jwk, b"key")))


def test_seal_refuses_a_point_off_the_curve() -> None:
    with pytest.raises(MalformedEvidence) as error:
        seal(KEY.public_jwk | {"x": b64url(bytes(31) + b"\x05")}, b"key")
    assert error.value.code == "kbs.pubkey"


def test_tee_key_does_not_show_itself() -> None:
    assert repr(KEY) == "<TeeKey, ECDH-ES+A256KW>"


@given(st.binary(max_size=120))
def test_open_opens_or_refuses_any_bytes(raw: bytes) -> None:
    with suppress(BrokerDenied):
        KEY.open(raw)


@given(
    st.dictionaries(st.sampled_from(["alg", "enc", "epk", "zip", "x"]), st.text(max_size=5) | st.integers(), max_size=4)
)
def test_open_refuses_any_header(value: dict[str, Any]) -> None:
    refused(KEY, header(json.loads(SEALED), **({"epk": 1} | value)))


@given(st.text(max_size=2000) | st.binary(min_size=1184, max_size=1184).map(b64url), st.text(max_size=30))
def test_seal_seals_to_or_refuses_any_kem_key(pub: str, alg: str) -> None:
    for name in ("ML-KEM-768+A192KW", alg):
        with suppress(MalformedEvidence):
            seal({"kty": "AKP", "alg": name, "pub": pub}, b"key")


SEALED = seal(KEY.public_jwk, b"key")
