import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from antechamber.broker.jwe import TeeKey, seal
from antechamber.broker.messages import b64url
from antechamber.errors import BrokerDenied, MalformedEvidence

KEY = TeeKey.generate()
KEYS = [KEY, TeeKey(ec.generate_private_key(ec.SECP521R1())), TeeKey(rsa.generate_private_key(65537, 2048))]


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


SEALED = seal(KEY.public_jwk, b"key")
