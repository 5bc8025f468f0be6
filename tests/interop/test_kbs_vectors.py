"""KBS protocol 0.4.0 against vectors made from the rules of Trustee and guest-components."""

import base64
import hashlib
import json
from typing import Any

import pytest
from vectors import VECTORS, needs_vectors

from antechamber.broker.jwe import TeeKey, seal
from antechamber.broker.messages import Attestation, Challenge, Cookie, Request, Response
from antechamber.errors import BrokerDenied
from antechamber.evidence.composite import canonical, device_nonce, report_data

pytestmark = needs_vectors


def load(name: str) -> Any:
    path = VECTORS / "kbs" / name
    return json.loads(path.read_text()) if path.exists() else []


RESPONSES = load("jwe_responses.json")
OPEN = [v for v in RESPONSES if v["tee-pubkey"]["alg"] != "RSA1_5"]
REFUSED = [v for v in RESPONSES if v["tee-pubkey"]["alg"] == "RSA1_5"]
DIGESTS = [v for v in load("runtime_data.json") if "additional_evidence" in v]


def test_the_vectors_are_all_there() -> None:
    assert (len(OPEN), len(REFUSED)) == (10, 3)


@pytest.mark.parametrize("vector", OPEN, ids=lambda v: v["name"])
def test_tee_key_opens_a_response_whatever_its_header_order(vector: dict[str, Any]) -> None:
    key = TeeKey.from_pem(vector["private_key_pem"].encode())
    assert key.public_jwk == vector["tee-pubkey"]
    with key.open(json.dumps(vector["response"]).encode()) as plain:
        assert bytes(plain).hex() == vector["plaintext_hex"]


@pytest.mark.parametrize("vector", REFUSED, ids=lambda v: v["name"])
def test_tee_key_refuses_rsa1_5(vector: dict[str, Any]) -> None:
    key = TeeKey.from_pem(vector["private_key_pem"].encode())
    with pytest.raises(BrokerDenied) as refused:
        key.open(json.dumps(vector["response"]).encode())
    assert refused.value.code == "broker.jwe"
    assert "RSA1_5" in refused.value.detail


@pytest.mark.parametrize("vector", OPEN, ids=lambda v: v["name"])
def test_seal_never_emits_an_order_that_coco_clients_reject(vector: dict[str, Any]) -> None:
    response = Response.parse(seal(vector["tee-pubkey"], bytes.fromhex(vector["plaintext_hex"])))
    text = base64.urlsafe_b64decode(response.protected + "==").decode()
    header = json.loads(text)
    rebuilt = {"alg": header.pop("alg"), "enc": header.pop("enc")} | dict(sorted(header.items()))
    if "epk" in rebuilt:
        rebuilt["epk"] = dict(sorted(rebuilt["epk"].items()))
    assert text == json.dumps(rebuilt, separators=(",", ":"))
    key = TeeKey.from_pem(vector["private_key_pem"].encode())
    with key.open(response.build()) as plain:
        assert bytes(plain).hex() == vector["plaintext_hex"]


def test_the_negative_vector_has_another_order_than_ours() -> None:
    (negative,) = [v for v in RESPONSES if v.get("coco_client_rejects")]
    ours = Response.parse(seal(negative["tee-pubkey"], b"x"))
    assert list(Response.parse(json.dumps(negative["response"]).encode()).header()) == ["enc", "alg", "epk"]
    assert list(ours.header()) == ["alg", "enc", "epk"]
    assert list(ours.header()["epk"]) == ["crv", "kty", "x", "y"]


@pytest.mark.parametrize("vector", DIGESTS, ids=lambda v: v["name"])
def test_runtime_data_hashes_as_trustee_does(vector: dict[str, Any]) -> None:
    nonce, key, additional = vector["nonce"], vector["tee-pubkey"], vector["additional_evidence"]
    assert device_nonce(nonce, key).hex() == vector["nvidia_spdm_nonce_hex"]
    assert report_data(nonce, key, additional).hex() == vector["tdx_report_data_64_hex"]


def test_canonical_form_hashes_as_trustees_unit_test() -> None:
    (vector,) = [v for v in load("runtime_data.json") if v["name"] == "repo unit test"]
    text = canonical(json.loads(vector["canonical"]))
    assert text.decode() == vector["canonical"]
    assert hashlib.sha384(text).hexdigest() == vector["sha384"]


def test_messages_parse_the_constructed_exchange() -> None:
    transcript = load("transcript_sample_v040.json")
    auth, attest, resource = transcript["steps"]
    assert Request.parse(dump(auth["request"]["json"])) == Request("0.4.0", "sample")
    nonce = Challenge.parse(dump(auth["response"]["json"])).nonce
    cookie = Cookie.parse(auth["response"]["headers"]["Set-Cookie"], "/kbs/v0/auth")
    assert cookie is not None
    assert cookie.fits("/kbs/v0/resource/default/key/1")
    assert cookie.build() == attest["request"]["headers"]["Cookie"]
    sent = Attestation.parse(dump(attest["request"]["json"]))
    assert (sent.nonce, sent.additional, sent.init_data) == (nonce, "", None)
    assert json.loads(sent.build()) == attest["request"]["json"]
    key = TeeKey.from_pem(transcript["tee_private_key_pem"].encode())
    with key.open(dump(resource["response"]["json"])) as plain:
        assert bytes(plain).hex() == resource["decrypts_to_hex"]


def dump(value: object) -> bytes:
    return json.dumps(value).encode()
