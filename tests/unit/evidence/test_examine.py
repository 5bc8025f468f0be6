"""Steps by themselves: the first that fails is what `verify` raises, and none hides another."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from brokers import Guest
from brokers import policy as build_policy

from antechamber.errors import AppraisalRefused, MalformedEvidence
from antechamber.evidence.anchors import Anchors, spki_sha256
from antechamber.evidence.appraise import verify
from antechamber.evidence.collateral import Collateral, TdxCollateral
from antechamber.evidence.composite import CompositeEvidence, additional_evidence, device_nonce, report_data
from antechamber.evidence.examine import examine, judge
from antechamber.evidence.policy import load_policy
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.machine import Machine
from antechamber.simulator.nvidia import NvidiaPki

NOW = int(time.time())
INTEL, NVIDIA = IntelPki(), NvidiaPki()
NONCE = "A" * 43 + "="


def anchors() -> Anchors:
    from cryptography import x509

    return Anchors(INTEL.root_der, spki_sha256(x509.load_pem_x509_certificate(NVIDIA.root_pem.encode())))


def guest(intel: IntelPki = INTEL, **knobs: Any) -> Guest:
    made = Guest(Machine(intel, NVIDIA, Knobs(**knobs)))
    made.measure()
    return made


def asked(evidence: CompositeEvidence, of: Guest, collateral: dict[str, str] | None = None) -> dict[str, Any]:
    sets = (TdxCollateral.build(collateral or INTEL.collateral()),)
    return {
        "evidence": evidence,
        "report_data": report_data(NONCE, of.tee.public_jwk, evidence.additional),
        "gpu_nonce": device_nonce(NONCE, of.tee.public_jwk),
        "anchors": anchors(),
        "collateral": Collateral(NOW, b"", sets),
        "now": NOW,
    }


HEALTHY = guest()
GOOD = HEALTHY.evidence(NONCE)


def changed(**fields: Any) -> Callable[[], dict[str, Any]]:
    return lambda: asked(dataclasses.replace(GOOD, **fields), HEALTHY)


def of(made: Callable[[], Guest]) -> Callable[[], dict[str, Any]]:
    def build() -> dict[str, Any]:
        one = made()
        return asked(one.evidence(NONCE), one)

    return build


def old_gpus() -> dict[str, Any]:
    additional = additional_evidence(HEALTHY.machine.collect(bytes(32)))
    quote = HEALTHY.machine.quote(report_data(NONCE, HEALTHY.tee.public_jwk, additional))
    return asked(CompositeEvidence(quote, GOOD.event_log, additional), HEALTHY)


def extended() -> Guest:
    made = guest()
    made.machine.extend_rtmr3(bytes(48))
    return made


CASES: dict[str, tuple[list[str], Callable[[], dict[str, Any]]]] = {
    "no quote": (["quote.version"], changed(quote=b"\1" * 600)),
    "debug": (["tdx.debug", "tdx.debug"], of(lambda: guest(debug=True))),
    "another key": (["quote.report-data", "gpu.nonce"], lambda: asked(GOOD, guest())),
    "another Intel": (["quote.anchor"], of(lambda: guest(IntelPki()))),
    "old collateral": (["collateral.expired"], lambda: asked(GOOD, HEALTHY, INTEL.collateral(days=-1))),
    "no log": (["eventlog.missing"], changed(event_log=None)),
    "noise for a log": (["eventlog.short"], changed(event_log=b"\0\0\0")),
    "extend that no log has": (["eventlog.replay"], of(extended)),
    "old GPUs": (["gpu.nonce"], old_gpus),
    "other GPUs than the quote binds": (
        ["quote.report-data", "gpu.nonce"],
        changed(additional=additional_evidence(HEALTHY.machine.collect(bytes(32)))),
    ),
    "all at once": (
        ["quote.version", "eventlog.missing", "evidence.json"],
        changed(quote=b"\1" * 600, event_log=None, additional="{"),
    ),
}  # fmt: skip


def test_examine_holds_every_step_of_healthy_evidence() -> None:
    seen = examine(**asked(GOOD, HEALTHY))
    assert {c.outcome for c in seen.claims} == {"held"}
    assert len(seen.claims) == 8
    assert seen.verified == verify(**asked(GOOD, HEALTHY))
    assert (seen.phase, seen.tls) == ("boot", HEALTHY.tls_event)


@pytest.mark.parametrize("case", CASES)
def test_examine_shows_all_and_verify_raises_the_first(case: str) -> None:
    codes, build = CASES[case]
    question = build()
    seen = examine(**question)
    assert [e.code for e in seen.errors] == codes
    assert seen.verified is None
    with pytest.raises((AppraisalRefused, MalformedEvidence)) as refused:
        verify(**question)
    assert refused.value.code == seen.errors[0].code


def test_examine_verifies_no_chain_without_collateral() -> None:
    seen = examine(**(asked(GOOD, HEALTHY) | {"collateral": None}))
    assert [c.name for c in seen.claims if c.outcome == "not-appraised"] == ["quote chain"]
    assert (seen.errors, seen.verified) == ((), None)


@pytest.mark.parametrize("case", [*CASES, "no collateral"])
def test_no_policy_accepts_what_does_not_verify(case: str) -> None:
    """Its registers may be all that the policy asks, and prove nothing."""
    question = asked(GOOD, HEALTHY) | {"collateral": None} if case == "no collateral" else CASES[case][1]()
    policy = load_policy(yaml.safe_dump(build_policy(INTEL, NVIDIA, "A" * 43 + "=")))
    assert judge(examine(**asked(GOOD, HEALTHY)), policy, "boot").ok
    judged = judge(examine(**question), policy, "boot")
    assert not judged.ok
    assert judged.claims[0].name == "evidence"
