"""Each claim of a policy holds on a guest that is what it says, and fails by its own code on one that is not."""

import dataclasses
import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from unit.client.guest import Guest

from antechamber.errors import AppraisalRefused
from antechamber.evidence.anchors import NVIDIA_ROOT_SPKI, VENDORS
from antechamber.evidence.appraise import AttestationResult, VerifiedEvidence, appraise, verify
from antechamber.evidence.bundle import Bundle, gpu_nonce, parse_bundle, report_data
from antechamber.evidence.collateral import open_collateral
from antechamber.evidence.eventlog import AaelEvent
from antechamber.evidence.policy import Policy, signer_key
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.nvidia import NvidiaPki

NONCE = "00" * 32


def _certificate() -> bytes:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture(scope="module")
def guest() -> Guest:
    return Guest(_certificate())


@pytest.fixture(scope="module")
def bundle(guest: Guest) -> Bundle:
    return parse_bundle(guest.bundle(NONCE)[0])


@pytest.fixture(scope="module")
def verified(guest: Guest, bundle: Bundle) -> VerifiedEvidence:
    policy = guest.policy()
    collateral = open_collateral(bundle.collateral, signer_key(policy.collateral.signer), nonce=None, floor=0)
    return verify(
        bundle.evidence,
        report_data=report_data(bundle.transcript_text),
        gpu_nonce=gpu_nonce(bundle.nonce, bundle.tls_spki),
        anchors=policy.anchors.anchors(),
        collateral=collateral,
        now=collateral.time,
    )


def failed(result: AttestationResult) -> list[str]:
    return [c.code for c in result.claims if c.outcome == "failed"]


def changed(policy: Policy, section: str, **values: Any) -> Policy:
    part = getattr(policy, section)
    new = {**part, **values} if isinstance(part, dict) else dataclasses.replace(part, **values)
    return dataclasses.replace(policy, **{section: new})


def test_appraise_holds_every_claim_when_the_guest_is_what_the_policy_says(guest: Guest, verified: Any) -> None:
    result = appraise(verified, guest.policy(), phase="released")
    result.require()
    assert result.ok
    assert [name.partition(":")[0] for name in result.anchor.split(", ")] == ["simulated", "simulated"]
    assert result.simulated
    unappraised = {c.name for c in result.claims if c.outcome == "not-appraised"}
    assert unappraised == {"gpu0 vbios", "gpu0 measurements", "gpu0 revocation"}


_OTHER = ("99" * 48,)


@pytest.mark.parametrize(
    ("section", "values", "code"),
    [
        ("tdx", {"mr_td": _OTHER}, "appraisal.mr-td"),
        ("tdx", {"rtmr0": _OTHER}, "appraisal.rtmr0"),
        ("tdx", {"rtmr1": _OTHER}, "appraisal.rtmr1"),
        ("tdx", {"rtmr2": _OTHER}, "appraisal.rtmr2"),
        ("tdx", {"mr_config_id": _OTHER}, "appraisal.mr-config-id"),
        ("tdx", {"mr_owner": _OTHER}, "appraisal.mr-owner"),
        ("tdx", {"mr_owner_config": _OTHER}, "appraisal.mr-owner-config"),
        ("tdx", {"mr_seam": _OTHER}, "appraisal.mr-seam"),
        ("tdx", {"td_attributes": ("00" * 8,)}, "appraisal.td-attributes"),
        ("tdx", {"xfam": ("00" * 8,)}, "appraisal.xfam"),
        ("tdx", {"tcb_status": ("OutOfDate",)}, "appraisal.tcb-status"),
        ("collateral", {"min_tcb_eval": 1000}, "appraisal.tcb-eval"),
        ("collateral", {"max_issue_age_s": 86_399}, "appraisal.issue-age"),
        ("events", {"config": ("sha384:" + "99" * 48,)}, "appraisal.event-config"),
        ("events", {"init-data": ("sha384:" + "99" * 48,)}, "appraisal.event-init-data"),
        ("events", {"engine": ("sha384:" + "99" * 48,)}, "appraisal.event-engine"),
        ("events", {"model": ("sha256:" + "99" * 32,)}, "appraisal.event-model"),
        ("events", {"gpu": ("sha384:" + "99" * 48,)}, "appraisal.event-gpu"),
        ("gpu", {"count": 2}, "appraisal.gpu-count"),
        ("gpu", {"arch": ("BLACKWELL",)}, "appraisal.gpu0-arch"),
        ("gpu", {"modes": ("ppcie",)}, "appraisal.gpu0-mode"),
        ("gpu", {"driver_min": "999.0"}, "appraisal.gpu0-driver"),
        ("gpu", {"vbios": ("96.00.00.00.00",)}, "appraisal.gpu0-vbios"),
    ],
)
def test_appraise_fails_one_claim_when_one_value_differs(
    guest: Guest, verified: VerifiedEvidence, section: str, values: dict[str, Any], code: str
) -> None:
    result = appraise(verified, changed(guest.policy(), section, **values), phase="released")
    assert failed(result) == [code]
    with pytest.raises(AppraisalRefused) as refused:
        result.require()
    assert refused.value.code == code


def test_appraise_fails_when_an_advisory_is_not_named(guest: Guest, verified: VerifiedEvidence) -> None:
    worse = dataclasses.replace(verified, tdx=dataclasses.replace(verified.tdx, advisory_ids=("INTEL-SA-00001",)))
    assert failed(appraise(worse, guest.policy(), phase="released")) == ["appraisal.advisories"]
    named = changed(guest.policy(), "tdx", advisories=("INTEL-SA-00001",))
    assert appraise(worse, named, phase="released").ok


def test_appraise_fails_when_the_anchor_is_another(guest: Guest, verified: VerifiedEvidence) -> None:
    real = changed(guest.policy(), "anchors", intel="intel")
    assert failed(appraise(verified, real, phase="released")) == ["appraisal.anchor"]
    for another in ("nvidia", NvidiaPki().root_pem):
        other = changed(guest.policy(), "anchors", nvidia=another)
        assert failed(appraise(verified, other, phase="released")) == ["appraisal.gpu-anchor"]
    other = changed(guest.policy(), "anchors", intel=IntelPki().root_pem)
    assert failed(appraise(verified, other, phase="released")) == ["appraisal.anchor"]


def test_appraise_names_a_simulated_gpu_beside_a_real_processor(guest: Guest, verified: VerifiedEvidence) -> None:
    """Only the name of the processor's root is replaced: its chain cannot be simulated."""
    real = dataclasses.replace(verified, tdx=dataclasses.replace(verified.tdx, anchor="intel"))
    result = appraise(real, guest.policy(), phase="released")
    assert result.anchor == f"intel, simulated:{verified.gpus[0].root_spki.hex()[:12]}"
    assert result.simulated
    root = dataclasses.replace(verified.gpus[0], root_spki=NVIDIA_ROOT_SPKI)
    assert dataclasses.replace(real, gpus=(root,)).anchor == VENDORS
    assert appraise(dataclasses.replace(real, gpus=()), guest.policy(), phase="released").simulated


def test_appraise_fails_when_the_phase_is_not_the_guests(guest: Guest, verified: VerifiedEvidence) -> None:
    assert failed(appraise(verified, guest.policy(), phase="boot")) == ["appraisal.events"]
    before = dataclasses.replace(verified, events=verified.events[:-1])
    assert appraise(before, guest.policy(), phase="boot").ok
    assert "appraisal.events" in failed(appraise(before, guest.policy(), phase="released"))


@pytest.mark.parametrize("change", ["reversed", "doubled", "added", "dropped", "foreign"])
def test_appraise_fails_when_the_events_are_not_exactly_the_list(
    guest: Guest, verified: VerifiedEvidence, change: str
) -> None:
    events = verified.events
    altered = {
        "reversed": events[::-1],
        "doubled": (*events, events[-1]),
        "added": (*events, AaelEvent("antechamber", "more", "x")),
        "dropped": events[1:],
        "foreign": (AaelEvent("example.org", "config", events[0].content), *events[1:]),
    }[change]
    other = dataclasses.replace(verified, events=altered)
    assert "appraisal.events" in failed(appraise(other, guest.policy(), phase="released"))


def test_appraise_fails_when_the_cap_names_another_key(guest: Guest, verified: VerifiedEvidence) -> None:
    other = (*verified.events[:-1], AaelEvent("antechamber", "released", "sha384:" + "99" * 48))
    result = appraise(dataclasses.replace(verified, events=other), guest.policy(), phase="released")
    assert failed(result) == ["appraisal.event-released"]


def test_appraise_fails_when_the_report_lacks_the_firmware_digest(guest: Guest, verified: VerifiedEvidence) -> None:
    gpu = dataclasses.replace(verified.gpus[0], fwid_matched=False)
    result = appraise(dataclasses.replace(verified, gpus=(gpu,)), guest.policy(), phase="released")
    assert failed(result) == ["appraisal.gpu-identity", "appraisal.gpu0-fwid"]


def test_result_refuses_when_nothing_was_appraised() -> None:
    empty = AttestationResult((), "intel", 0)
    assert not empty.ok
    with pytest.raises(AppraisalRefused) as refused:
        empty.require()
    assert refused.value.code == "appraisal.empty"
