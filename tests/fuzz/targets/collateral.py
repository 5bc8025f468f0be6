"""Collateral: the signed envelope, the sets in it, and a quote verified with them: Intel's JSON, chains and CRLs."""

import base64
import json
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from fuzz.contract import NOW, VECTORS, Target
from fuzz.mutation import Mutator, pem_blocks, to_pem

from antechamber.evidence.anchors import NVIDIA_ROOT_SPKI, Anchors
from antechamber.evidence.chain import fmspc_of, verify_quote
from antechamber.evidence.collateral import PAYLOAD_TYPE, TdxCollateral, open_collateral, seal_collateral
from antechamber.evidence.tdx import Quote
from antechamber.simulator import authority
from antechamber.simulator.intel import IntelPki, td_body

PKI = IntelPki(NOW, seed=bytes(32))
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
SIGNER = KEY.public_key().public_bytes_raw()
QUOTE = Quote.parse(PKI.quote_v4(td_body()))
FMSPC = fmspc_of(QUOTE)
ANCHORS = Anchors(PKI.root_der, NVIDIA_ROOT_SPKI)


def run(data: bytes) -> None:
    collateral = open_collateral(data, SIGNER, nonce=None, floor=0)
    again = seal_collateral(collateral.tdx, time=collateral.time, nonce=collateral.nonce, key=KEY)
    assert open_collateral(again, SIGNER, nonce=collateral.nonce, floor=collateral.time) == collateral
    for one in collateral.tdx:
        assert TdxCollateral.parse(one.text) == one, "a set's own text is another set"
    verdict = verify_quote(QUOTE, collateral.for_fmspc(FMSPC), ANCHORS, NOW)
    assert verdict.fmspc == FMSPC
    assert verdict.earliest_expiration >= NOW, "collateral that is over verifies"


def enveloped(payload: bytes) -> bytes:
    """Any payload, under the right key."""
    pae = b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    signature = {"keyid": "", "sig": base64.b64encode(KEY.sign(pae)).decode()}
    body = {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(payload).decode(), "signatures": [signature]}
    return json.dumps(body).encode()


def _payload(data: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(base64.b64decode(json.loads(data)["payload"]))
    return value


def seeds() -> list[bytes]:
    def sealed(**knobs: Any) -> bytes:
        return seal_collateral([TdxCollateral.build(PKI.collateral(**knobs))], time=NOW, nonce=bytes(32), key=KEY)

    two = [TdxCollateral.build(PKI.collateral(fmspc=fmspc)) for fmspc in (FMSPC, "0" * 12)]
    return [
        sealed(),
        sealed(revoke_pck=True),
        sealed(tcb_status="OutOfDate", advisories=["INTEL-SA-00001"]),
        sealed(days=-1),
        sealed(pce_id="0001"),
        sealed(tcb_signer="pck"),
        seal_collateral(two, time=NOW, nonce=b"", key=KEY),
        seal_collateral([], time=NOW, nonce=b"", key=KEY),
    ]


def vectors() -> list[bytes]:
    """Intel's own sets, under our envelope."""
    found = []
    for path in sorted((VECTORS / "tdx" / "collateral").glob("*.json")):
        found.append(seal_collateral([TdxCollateral.parse(path.read_bytes())], time=NOW, nonce=b"", key=KEY))
    return found


def mutate(m: Mutator, data: bytes) -> bytes:
    if m.often(0.1):
        return json.dumps(m.json(json.loads(data))).encode()
    payload = _payload(data)
    if m.often(0.2) or not payload.get("tdx"):
        return enveloped(json.dumps(m.json(payload)).encode("utf-8", "replace"))
    at = m.random.randrange(len(payload["tdx"]))
    payload["tdx"][at] = m.random.choice(CHANGES)(m, dict(payload["tdx"][at]))
    return enveloped(json.dumps(payload).encode("utf-8", "replace"))


def _signed_json(name: str) -> Callable[[Mutator, dict[str, str]], dict[str, str]]:
    """TCB info or QE identity changed, and signed by Intel's TCB signer again."""

    def change(m: Mutator, one: dict[str, str]) -> dict[str, str]:
        text = json.dumps(m.json(json.loads(one[name])), separators=(",", ":"))
        signature = authority.raw_signature(PKI._tcb.key, SHA256(), text.encode("utf-8", "replace"))
        return one | {name: text, f"{name}_signature": signature.hex()}

    return change


def _crl(name: str) -> Callable[[Mutator, dict[str, str]], dict[str, str]]:
    def change(m: Mutator, one: dict[str, str]) -> dict[str, str]:
        key = PKI._root.key if name == "root_ca_crl" else PKI._pck_ca.key
        return one | {name: m.certificate(bytes.fromhex(one[name]), key, SHA256()).hex()}

    return change


def _chain(name: str) -> Callable[[Mutator, dict[str, str]], dict[str, str]]:
    def change(m: Mutator, one: dict[str, str]) -> dict[str, str]:
        blocks = pem_blocks(one[name].encode())
        at = m.random.randrange(len(blocks))
        blocks[at] = m.certificate(blocks[at], PKI._root.key, SHA256())
        pem = to_pem(blocks).decode()
        same = ("tcb_info_issuer_chain", "qe_identity_issuer_chain")
        return one | {name: pem} | (dict.fromkeys(same, pem) if name in same and m.often() else {})

    return change


def _member(m: Mutator, one: dict[str, str]) -> dict[str, str]:
    changed: dict[str, str] = m.json(one)
    return changed


CHANGES = (
    _signed_json("tcb_info"), _signed_json("tcb_info"), _signed_json("qe_identity"), _crl("root_ca_crl"),
    _crl("pck_crl"), _chain("pck_crl_issuer_chain"), _chain("tcb_info_issuer_chain"),
    _chain("qe_identity_issuer_chain"), _member,
)  # fmt: skip
WORDS = (
    "payloadType", "payload", "signatures", "sig", "keyid", PAYLOAD_TYPE, "version", "time", "nonce", "tdx", "fmspc",
    "pceId", "tcbType", "tcbEvaluationDataNumber", "issueDate", "nextUpdate", "tcbLevels", "tcb", "tcbStatus",
    "tcbDate", "sgxtcbcomponents", "tdxtcbcomponents", "pcesvn", "svn", "isvsvn", "tdxModule", "tdxModuleIdentities",
    "mrsigner", "attributes", "attributesMask", "miscselect", "miscselectMask", "isvprodid", "id", "TDX", "TD_QE",
    "TDX_01", "SGX", "UpToDate", "OutOfDate", "Revoked", "SWHardeningNeeded", "advisoryIDs", "2026-11-25T00:00:00Z",
    "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "pck_certificate_chain", "root_ca_crl", "pck_crl",
)  # fmt: skip
TARGET = Target(
    name="collateral", run=run, seeds=seeds, mutate=mutate, words=WORDS, max_len=1 << 17, vectors=vectors
)  # fmt: skip
