"""Serving bundles, live and saved: parse, and verify against a policy that pins the simulated guest."""

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fuzz.contract import NOW, Target, require_sayable
from fuzz.mutation import Mutator

from antechamber.client.report import as_json, as_text
from antechamber.client.saved import verify_saved
from antechamber.errors import AppraisalRefused
from antechamber.evidence import eventlog
from antechamber.evidence.anchors import Anchors, spki_sha256
from antechamber.evidence.bundle import (
    Transcript,
    compose,
    gpu_nonce,
    parse_bundle,
    report_data,
    sha384,
    transcript_text,
    verify_bundle,
)
from antechamber.evidence.collateral import TdxCollateral, seal_collateral
from antechamber.evidence.composite import CompositeEvidence, additional_evidence
from antechamber.evidence.gpu_chain import gpu_event, verify_devices
from antechamber.evidence.policy import Policy, load_policy
from antechamber.simulator.authority import derive_key
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.machine import Machine
from antechamber.simulator.nvidia import NvidiaPki

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "policy.yaml"
NONCE = bytes(range(32))
MODEL = "sha256:" + "ab" * 32
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
PKI, GPUS = IntelPki(NOW, seed=bytes(32)), NvidiaPki(seed=bytes(32))


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


TLS = _spki(derive_key(bytes(32), "bundle/tls", ec.SECP256R1()).public_key())
RECEIPT = _spki(derive_key(bytes(32), "bundle/receipt", ec.SECP256R1()).public_key())


class Guest:
    """Booted and measured; a new one for each bundle, as registers only grow."""

    def __init__(self) -> None:
        self.machine = Machine(PKI, GPUS)
        anchors = Anchors(None, spki_sha256(GPUS._root.certificate))
        devices = self.machine.collect(bytes(32))
        self.contents = {
            "config": sha384(b"config"), "init-data": sha384(bytes(48)), "engine": sha384(b"engine"), "model": MODEL,
            "gpu": gpu_event(verify_devices(devices, nonce=bytes(32), anchors=anchors, now=NOW)), "tls": sha384(TLS),
            "receipt": sha384(RECEIPT), "released": sha384(TLS),
        }  # fmt: skip
        self.aael = b""
        for operation in (*eventlog.ORDER, eventlog.CAP):
            event = eventlog.AaelEvent(eventlog.DOMAIN, operation, self.contents[operation])
            self.machine.extend_rtmr3(event.digest())
            self.aael += event.encode()

    def bundle(self, **changes: str) -> bytes:
        """A quote over any transcript: `changes` are members of it."""
        devices = self.machine.collect(gpu_nonce(NONCE, TLS))
        envelope = seal_collateral([TdxCollateral.build(PKI.collateral())], time=NOW, nonce=b"", key=SIGNER)
        additional = additional_evidence(devices)
        transcript = Transcript(
            format="antechamber-transcript/1", nonce=NONCE.hex(), tls=sha384(TLS), receipt=sha384(RECEIPT), model=MODEL,
            engine=self.contents["engine"], gpu_evidence=sha384(additional.encode()), collateral=sha384(envelope),
            attestation_result=sha384(b"token"),
        )  # fmt: skip
        text = transcript_text(dataclasses.replace(transcript, **changes))  # type: ignore[arg-type]
        quote = self.machine.quote(report_data(text))
        evidence = CompositeEvidence(quote, eventlog.compose_log(self.machine.ccel(), self.aael), additional)
        return compose(
            text=text, evidence=evidence, collateral=envelope, token="token", tls_spki=TLS, receipt_spki=RECEIPT
        )  # fmt: skip


def _policy() -> Policy:
    guest = Guest()
    reference: Any = guest.machine.reference()
    names = ("mr_td", "rtmr0", "rtmr1", "rtmr2", "td_attributes", "xfam", "mr_seam")
    zero = dict.fromkeys(("mr_config_id", "mr_owner", "mr_owner_config"), "zero")
    signer = base64.b64encode(SIGNER.public_key().public_bytes_raw()).decode()
    rules = yaml.safe_load(EXAMPLE.read_text())  # every key, whatever a version adds
    rules["anchors"] = {"intel": PKI.root_pem, "nvidia": GPUS.root_pem}
    rules["collateral"] |= {"signer": signer, "min_tcb_eval": 1}
    rules["tdx"] |= {n: [reference[n]] for n in names} | zero
    rules["events"] = {n: [guest.contents[n]] for n in ("config", "init-data", "engine", "model", "gpu")}
    rules["gpu"] |= {"driver_min": "570.00"}
    return load_policy(yaml.safe_dump(rules))


POLICY = _policy()


def run(data: bytes) -> None:
    bundle = parse_bundle(data)
    again = parse_bundle(
        compose(
            text=bundle.transcript_text, evidence=bundle.evidence, collateral=bundle.collateral, token=bundle.ear,
            tls_spki=bundle.tls_spki, receipt_spki=bundle.receipt_spki,
        )
    )  # fmt: skip
    assert dataclasses.replace(again, text=b"") == dataclasses.replace(bundle, text=b""), "written again, it is another"
    saved, _ = verify_saved(data, POLICY)
    live = verify_bundle(bundle, POLICY, nonce=bundle.nonce, now=NOW)
    other = verify_bundle(bundle, POLICY, nonce=bytes(16), now=NOW)
    assert not other.ok, "a bundle over another nonce is accepted"
    for result in (saved, live, other):
        text = as_text(result, ascii_only=False)
        assert all(line.isprintable() for line in text.split("\n")), "a terminal would obey what a guest wrote"
        json.dumps(as_json(result), ensure_ascii=False).encode()
        try:
            result.require()
        except AppraisalRefused as refused:
            require_sayable(refused)
    if live.ok:
        assert sha384(bundle.tls_spki) == bundle.transcript.tls == sha384(TLS)
        assert bundle.transcript.model == MODEL


def seeds() -> list[bytes]:
    return [Guest().bundle(), Guest().bundle(model="sha256:" + "cd" * 32), Guest().bundle(tls=sha384(b"other"))]


def mutate(m: Mutator, data: bytes) -> bytes:
    value = json.loads(data)
    if m.often(0.15):  # another transcript, well quoted
        member = m.random.choice(("nonce", "tls", "receipt", "model", "engine", "gpu_evidence", "collateral"))
        return Guest().bundle(**{member: m.text(json.loads(value["transcript"])[member])})
    if m.often(0.5):  # another event log or other Evidence
        key = m.random.choice(("cc_eventlog", "quote"))
        value["tdx"][key] = m.text(value["tdx"][key])
    else:
        value = m.json(value)
    return json.dumps(value, separators=(",", ":")).encode("utf-8", "replace")


WORDS = (
    "format", "antechamber-evidence/1", "transcript", "tdx", "additional_evidence", "collateral", "attestation_result",
    "tls_spki", "receipt_spki", "nonce", "tls", "receipt", "model", "engine", "gpu_evidence", "cc_eventlog", "quote",
    "antechamber-transcript/1",
)  # fmt: skip
TARGET = Target(name="bundle", run=run, seeds=seeds, mutate=mutate, words=WORDS, max_len=1 << 18)
