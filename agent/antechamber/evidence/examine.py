"""Evidence taken apart, for its owner: every step of its verification by itself, so that all that is wrong is seen.

It decides nothing. `appraise.verify` stops at the first refusal; here the steps that can still be taken are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from antechamber.errors import AgentError, AppraisalRefused, MalformedEvidence
from antechamber.evidence import chain, eventlog, gpu_chain, tdx
from antechamber.evidence.anchors import Anchors, intel_name, nvidia_name
from antechamber.evidence.appraise import (
    AttestationResult,
    Claim,
    Phase,
    VerifiedEvidence,
    event_claims,
    event_content,
    gpu_claims,
    parse_event_log,
    phase_of,
    register_claims,
    require_report_data,
    tcb_claims,
    verify_chain,
)
from antechamber.evidence.collateral import Collateral
from antechamber.evidence.composite import CompositeEvidence
from antechamber.evidence.policy import Policy

T = TypeVar("T")
Said = Literal["quote", "production TD", "report data", "quote chain", "event log", "replay", "runtime events", "gpus"]
_WANTED: dict[Said, str] = {
    "quote": "a TDX quote of version 4 or 5 and nothing else",
    "production TD": "a TD that its host can neither read, profile nor move",
    "report data": "bound to the nonce, key and device evidence beside it",
    "quote chain": "signed under the anchor, not revoked, of a certified TCB level, by collateral that is valid now",
    "event log": "a log that parses",
    "replay": "the quoted RTMRs",
    "runtime events": "events of RTMR3 whose texts have their digests",
    "gpus": "reports over the nonce, signed under the anchor, each by another GPU",
}


@dataclass(frozen=True, slots=True)
class Examined:
    """The steps as claims, and what each gave; None where it did not hold, or could not be taken."""

    claims: tuple[Claim, ...]
    errors: tuple[AgentError, ...]  # of the failed claims, in their order: `verify` raises the first
    anchors: Anchors
    time: int
    quote: tdx.Quote | None
    verdict: chain.TdxVerdict | None
    events: tuple[eventlog.AaelEvent, ...] | None
    gpus: tuple[gpu_chain.GpuClaims, ...] | None

    @property
    def phase(self) -> Phase:
        """`boot` too where no event is known."""
        return phase_of(self.events or ())

    @property
    def tls(self) -> str:
        """Content of the `tls` event, which names the guest; "" where it is not known."""
        return event_content(self.events or (), "tls") or ""

    @property
    def verified(self) -> VerifiedEvidence | None:
        """What `appraise` takes, if every step held."""
        if self.errors or self.quote is None or self.verdict is None or self.events is None or self.gpus is None:
            return None
        return VerifiedEvidence(self.quote, self.verdict, self.events, self.gpus, self.time)

    @property
    def anchor(self) -> str:
        """Both anchors, as VerifiedEvidence names them; of Evidence that does not verify, those it was held against."""
        if (verified := self.verified) is not None:
            return verified.anchor
        return f"{intel_name(self.anchors.root_key_id)}, {nvidia_name(self.anchors.nvidia_spki)}"


class Steps:
    """Steps taken one by one, each leaving a claim."""

    def __init__(self) -> None:
        self.claims: list[Claim] = []
        self.errors: list[AgentError] = []

    def take(self, name: str, wanted: str, run: Callable[[], T]) -> T | None:
        try:
            value = run()
        except (AppraisalRefused, MalformedEvidence) as e:
            self.fail(name, wanted, e)
            return None
        self.hold(name, wanted)
        return value

    def hold(self, name: str, wanted: str) -> None:
        self.claims.append(Claim(name, "held", wanted, wanted))

    def fail(self, name: str, wanted: str, error: AgentError) -> None:
        self.claims.append(Claim(name, "failed", error.detail, wanted, error.code))
        self.errors.append(error)

    def skip(self, name: str, why: str) -> None:
        """A step that cannot be taken after one that failed."""
        self.claims.append(Claim(name, "not-appraised", "-", why))


def examine(
    evidence: CompositeEvidence,
    *,
    report_data: bytes,
    gpu_nonce: bytes,
    anchors: Anchors,
    collateral: Collateral | None,
    now: int,
) -> Examined:
    """Each step of `appraise.verify`, in its order; without collateral the quote's chain is not verified."""
    steps = Steps()

    def take(name: Said, run: Callable[[], T]) -> T | None:
        return steps.take(name, _WANTED[name], run)

    quote = take("quote", lambda: tdx.Quote.parse(evidence.quote))
    verdict = None
    if quote is None:
        steps.skip("quote chain", "there is no quote to verify")
    else:
        body = quote.body
        faults = list(tdx.production_faults(body))
        for fault in faults:
            steps.fail("production TD", _WANTED["production TD"], fault)
        if not faults:
            steps.hold("production TD", _WANTED["production TD"])
        take("report data", lambda: require_report_data(body, report_data))
        if collateral is None:
            steps.skip("quote chain", "there is no collateral to verify it against")
        else:
            verdict = take("quote chain", lambda: verify_chain(quote, collateral, anchors, now))
    log = take("event log", lambda: parse_event_log(evidence))
    events = None
    if log is not None:
        if quote is not None:
            take("replay", lambda: eventlog.require_replay(log, quote.body))
        events = take("runtime events", lambda: eventlog.runtime_events(log))
    gpus = take("gpus", lambda: gpu_chain.verify_devices(evidence.devices(), nonce=gpu_nonce, anchors=anchors, now=now))
    return Examined(tuple(steps.claims), tuple(steps.errors), anchors, now, quote, verdict, events, gpus)


def judge(seen: Examined, policy: Policy, phase: Phase) -> AttestationResult:
    """The policy's claims on whatever was seen; of Evidence that does not verify, none accepts it."""
    return AttestationResult(tuple(_judged(seen, policy, phase)), seen.anchor, seen.time)


def _judged(seen: Examined, policy: Policy, phase: Phase) -> Iterator[Claim]:
    if seen.verified is None:
        code = seen.errors[0].code if seen.errors else "appraisal.evidence"
        yield Claim(
            "evidence", "failed", "not verified: what follows is only what it says", "Evidence that verifies", code
        )
    if seen.verdict is not None:
        yield from tcb_claims(seen.verdict, policy, seen.time)
    else:
        yield Claim("tcb", "not-appraised", "-", "the quote's chain did not verify")
    if seen.quote is not None:
        yield from register_claims(seen.quote.body, policy)
    if seen.events is not None:
        yield from event_claims(seen.events, policy, phase)
    else:
        yield Claim("events", "not-appraised", "-", "no event log that parses")
    if seen.gpus is not None:
        yield from gpu_claims(seen.gpus, seen.events or (), policy)
    else:
        yield Claim("gpu", "not-appraised", "-", "the GPUs' reports did not verify")
