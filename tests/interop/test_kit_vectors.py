"""The kit and the double against the shared vectors: what both roles are judged by agrees with them."""

import base64
import json
from typing import Any

import pytest
from interop.kit.jose import TeeKey, coco_header, runtime_digest, tee_pubkey
from interop.trustee_seal import Refused, init_digest, replay, reserialised, seal, verify_evidence
from vectors import VECTORS, needs_vectors

from antechamber.broker.jwe import TeeKey as OurKey
from antechamber.broker.jwe import seal as our_seal

pytestmark = [needs_vectors, pytest.mark.filterwarnings("ignore:JWE algorithm")]


def load(name: str) -> Any:
    path = VECTORS / "kbs" / name
    return json.loads(path.read_text()) if path.exists() else []


RESPONSES = load("jwe_responses.json")
DIGESTS = [v for v in load("runtime_data.json") if "additional_evidence" in v]


def key_of(vector: dict[str, Any]) -> TeeKey:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private = load_pem_private_key(vector["private_key_pem"].encode(), None)
    return TeeKey(private, vector["tee-pubkey"])  # type: ignore[arg-type]


def test_the_vectors_are_all_there() -> None:
    assert (len(RESPONSES), len(DIGESTS)) == (13, 6)


@pytest.mark.parametrize("vector", RESPONSES, ids=lambda v: v["name"])
def test_kit_opens_every_response_and_knows_whose_header_coco_rejects(vector: dict[str, Any]) -> None:
    header, plain = key_of(vector).open(json.dumps(vector["response"]).encode())
    assert plain.hex() == vector["plaintext_hex"]
    assert (header == coco_header(header)) is not vector.get("coco_client_rejects", False)


@pytest.mark.parametrize("vector", RESPONSES, ids=lambda v: v["name"])
def test_double_seals_what_the_kit_opens_and_our_agent_but_rsa1_5(vector: dict[str, Any]) -> None:
    for order in ("trustee", "enc-first"):
        sealed = seal(vector["tee-pubkey"], b"a key", order=order, aad="unused")
        assert key_of(vector).open(sealed)[1] == b"a key"
        if vector["tee-pubkey"]["alg"] != "RSA1_5":
            with OurKey.from_pem(vector["private_key_pem"].encode()).open(sealed) as plain:
                assert bytes(plain) == b"a key"


@pytest.mark.parametrize("vector", [v for v in RESPONSES if "RSA1_5" not in v["name"]], ids=lambda v: v["name"])
def test_kit_opens_what_our_broker_seals(vector: dict[str, Any]) -> None:
    header, plain = key_of(vector).open(our_seal(vector["tee-pubkey"], b"a key"))
    assert (plain, header) == (b"a key", coco_header(header))


@pytest.mark.parametrize("vector", DIGESTS, ids=lambda v: v["name"])
def test_kit_and_double_hash_as_trustee_does(vector: dict[str, Any]) -> None:
    nonce, key, additional = vector["nonce"], vector["tee-pubkey"], vector["additional_evidence"]
    assert reserialised(key | {"kid": "1"}) == key
    assert runtime_digest(nonce, key, None).hex() == vector["device_runtime_data_sha384"]
    assert runtime_digest(nonce, key, additional).hex() == vector["primary_runtime_data_sha384"]
    if not additional:
        sample = {"svn": "1", "report_data": vector["sample_report_data_b64std"]}
        assert verify_evidence("sample", sample, additional, nonce, key, None)["sample"]["svn"] == "1"
        with pytest.raises(Refused):
            verify_evidence("sample", sample, additional, nonce[::-1], key, None)


def test_double_replays_the_event_log() -> None:
    vector = load("aael.json")
    log = base64.b64decode(vector["cc_eventlog_without_ccel_b64"])
    assert replay(log)[3].hex() == vector["rtmr3_final"]
    changed = bytearray(log)
    changed[-100] ^= 1  # inside the last event: its digest stays, so the register does too
    assert replay(bytes(changed))[3].hex() == vector["rtmr3_final"]
    first = log.index(bytes.fromhex(vector["entries"][0]["digest_sha384"]))
    changed = bytearray(log)
    changed[first] ^= 1
    assert replay(bytes(changed))[3].hex() != vector["rtmr3_final"]


def test_double_binds_init_data_as_mrconfigid() -> None:
    vectors = load("initdata.json")
    assert [init_digest(v["toml"]).hex() for v in vectors] == [v["tdx_mrconfigid_hex"] for v in vectors]


def test_kit_finds_no_key_in_trustees_example_which_has_none() -> None:
    with pytest.raises(ValueError, match="no pointer"):
        tee_pubkey(load("example.token.json"))
