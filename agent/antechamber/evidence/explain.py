"""What a policy would decide about saved Evidence, claim by claim. Nothing is released on the strength of it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from antechamber.errors import AgentError, AppraisalRefused
from antechamber.evidence.anchors import Anchors
from antechamber.evidence.appraise import AttestationResult, Claim
from antechamber.evidence.bundle import (
    Bundle,
    clock_claim,
    gpu_nonce,
    named_claims,
    report_data,
    result_claims,
    transcript_claims,
)
from antechamber.evidence.collateral import Collateral, open_collateral
from antechamber.evidence.examine import Examined, Steps, examine, judge
from antechamber.evidence.policy import Policy, signer_key


@dataclass(frozen=True, slots=True)
class Explanation:
    """The steps of the verification, and each policy's claims."""

    kind: str  # attestation, bundle
    seen: Examined
    policies: Mapping[str, AttestationResult]

    @property
    def verification(self) -> AttestationResult:
        return AttestationResult(self.seen.claims, self.seen.anchor, self.seen.time)

    def require(self, policy: str) -> None:
        """Raises what a decision by this policy would raise first."""
        for error in self.seen.errors:
            raise error
        self.verification.require()
        self.policies[policy].require()


def explain_bundle(bundle: Bundle, policy: Policy, at: int | None, now: int) -> Explanation:
    """As `bundle.verify_bundle` judges a saved bundle: at `at`, else at its signed time; at `now` if none is signed."""
    opening = Steps()
    collateral = opening.take(
        "collateral envelope",
        "signed by the policy's collateral.signer",
        lambda: open_collateral(bundle.collateral, signer_key(policy.collateral.signer), nonce=None, floor=0),
    )
    when = at if at is not None else now if collateral is None else collateral.time
    seen = examine_bundle(bundle, policy.anchors.anchors(), collateral, when)
    seen = _ahead(seen, opening.claims, opening.errors)
    clock = [] if collateral is None else [clock_claim(collateral, policy, when)]
    judged = judge(seen, policy, "released")
    claims = (*clock, *result_claims(bundle, policy, when), *judged.claims)
    return Explanation("bundle", seen, {"policy": dataclasses.replace(judged, claims=claims)})


def examine_bundle(bundle: Bundle, anchors: Anchors, collateral: Collateral | None, now: int) -> Examined:
    """The steps, after what the transcript binds; and that the events name its keys and model."""
    seen = examine(
        bundle.evidence,
        report_data=report_data(bundle.transcript_text),
        gpu_nonce=gpu_nonce(bundle.nonce, bundle.tls_spki),
        anchors=anchors,
        collateral=collateral,
        now=now,
    )
    bound, named = transcript_claims(bundle, None), [] if seen.events is None else named_claims(bundle, seen.events)
    errors = [
        AppraisalRefused(c.code, f"{c.name} is {c.seen}, not {c.wanted}", hint="ask the guest for a fresh bundle")
        for c in (*bound, *named)
        if c.outcome == "failed"
    ]
    return dataclasses.replace(seen, claims=(*bound, *seen.claims, *named), errors=(*seen.errors, *errors))


def _ahead(seen: Examined, claims: list[Claim], errors: list[AgentError]) -> Examined:
    return dataclasses.replace(seen, claims=(*claims, *seen.claims), errors=(*errors, *seen.errors))
