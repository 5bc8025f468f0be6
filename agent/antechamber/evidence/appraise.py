"""Evidence + Appraisal Policy to Attestation Result, claim by claim. Source: RFC 9334, 8.4."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from antechamber.errors import AppraisalRefused, MalformedEvidence
from antechamber.evidence import chain, eventlog, gpu_chain, tdx
from antechamber.evidence.anchors import VENDORS, Anchors, intel_name, nvidia_name
from antechamber.evidence.collateral import Collateral
from antechamber.evidence.composite import CompositeEvidence
from antechamber.evidence.policy import Pin, Policy

Phase = Literal["boot", "released"]


@dataclass(frozen=True, slots=True)
class VerifiedEvidence:
    """Evidence whose signatures, chains, nonces and event log hold; nothing is said yet about its values."""

    quote: tdx.Quote
    tdx: chain.TdxVerdict
    events: tuple[eventlog.AaelEvent, ...]
    gpus: tuple[gpu_chain.GpuClaims, ...]
    time: int  # seconds since the epoch at which it was verified

    @property
    def anchor(self) -> str:
        """Both anchors: `intel, nvidia` where neither is simulated."""
        gpus = sorted({gpu.anchor for gpu in self.gpus})
        return ", ".join([self.tdx.anchor, *(gpus or ["no GPU"])])

    @property
    def phase(self) -> Phase:
        return phase_of(self.events)


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing the policy asks, and what was seen."""

    name: str
    outcome: Literal["held", "failed", "not-appraised"]
    seen: str
    wanted: str
    code: str = ""


@dataclass(frozen=True, slots=True)
class AttestationResult:
    """The Verifier's conclusion. It holds if every claim held or the policy accepts it unappraised."""

    claims: tuple[Claim, ...]
    anchor: str  # both, as VerifiedEvidence names them
    time: int

    @property
    def simulated(self) -> bool:
        """Whether any of it rests on another root than the vendors' own."""
        return self.anchor != VENDORS

    @property
    def ok(self) -> bool:
        return bool(self.claims) and all(c.outcome != "failed" for c in self.claims)

    def require(self) -> None:
        """Raises the first failed claim as AppraisalRefused `appraisal.*`."""
        if not self.claims:
            raise AppraisalRefused("appraisal.empty", "nothing was appraised", hint="give a policy")
        for claim in self.claims:
            if claim.outcome == "failed":
                raise AppraisalRefused(
                    claim.code,
                    f"{claim.name} is {claim.seen}, not {claim.wanted}",
                    hint=f"see {claim.name} in the policy",
                )


def verify(
    evidence: CompositeEvidence,
    *,
    report_data: bytes,
    gpu_nonce: bytes,
    anchors: Anchors,
    collateral: Collateral,
    now: int,
) -> VerifiedEvidence:
    """Verify composite Evidence: everything but the policy.

    1. the quote parses, and is of a production TD
    2. REPORTDATA is what we expect: the quote is fresh and binds the key and the GPU Evidence
    3. signatures, chain to the anchor, TCB, against the collateral
    4. the event log is there and replays to the quoted registers
    5. the GPUs' reports, over the nonce that REPORTDATA binds

    Raises MalformedEvidence, AppraisalRefused.
    """
    quote = tdx.Quote.parse(evidence.quote)  # 1
    tdx.require_production(quote.body)
    require_report_data(quote.body, report_data)  # 2
    verdict = verify_chain(quote, collateral, anchors, now)  # 3
    events = parse_event_log(evidence)  # 4
    eventlog.require_replay(events, quote.body)
    runtime = eventlog.runtime_events(events)
    gpus = gpu_chain.verify_devices(evidence.devices(), nonce=gpu_nonce, anchors=anchors, now=now)  # 5
    return VerifiedEvidence(quote, verdict, runtime, gpus, now)


def require_report_data(body: tdx.TdBody, wanted: bytes) -> None:
    """Raises AppraisalRefused `quote.report-data`."""
    if body.report_data != wanted:
        raise AppraisalRefused(
            "quote.report-data",
            f"REPORTDATA begins {body.report_data[:8].hex()}, expected {wanted[:8].hex()}",
            hint="quote over this session's nonce, key and device evidence",
        )


def verify_chain(quote: tdx.Quote, collateral: Collateral, anchors: Anchors, now: int) -> chain.TdxVerdict:
    """Against the collateral of the quote's own platform family; raises as `chain.verify_quote` does."""
    return chain.verify_quote(quote, collateral.for_fmspc(chain.fmspc_of(quote)), anchors, now)


def parse_event_log(evidence: CompositeEvidence) -> tuple[eventlog.Event, ...]:
    """Raises AppraisalRefused `eventlog.missing`, and as `eventlog.parse_log` does."""
    if evidence.event_log is None:
        raise AppraisalRefused("eventlog.missing", "no event log", hint="send cc_eventlog")
    return eventlog.parse_log(evidence.event_log)


def phase_of(events: Sequence[eventlog.AaelEvent]) -> Phase:
    """Whether the guest has measured `released`."""
    return "released" if event_content(events, eventlog.CAP) is not None else "boot"


def event_content(events: Sequence[eventlog.AaelEvent], operation: str) -> str | None:
    """Content of the event `antechamber <operation>`, or None."""
    for event in events:
        if event.domain == eventlog.DOMAIN and event.operation == operation:
            return event.content
    return None


def appraise(verified: VerifiedEvidence, policy: Policy, *, phase: Phase) -> AttestationResult:
    """Every claim of the policy against verified Evidence. Never raises for a claim that fails."""
    claims = (
        *tcb_claims(verified.tdx, policy, verified.time),
        *register_claims(verified.quote.body, policy),
        *event_claims(verified.events, policy, phase),
        *gpu_claims(verified.gpus, verified.events, policy),
    )
    return AttestationResult(claims, verified.anchor, verified.time)


def _claim(name: str, held: bool, seen: object, wanted: object) -> Claim:
    code = "appraisal." + name.replace("_", "-").replace(" ", "-")
    return Claim(name, "held" if held else "failed", str(seen), str(wanted), code)


def _pinned(name: str, value: str, pin: Pin) -> Claim:
    if pin == "unpinned":
        return Claim(name, "not-appraised", value, "any value, as the policy says")
    if pin == "zero":
        return _claim(name, set(value) == {"0"}, value, "zero")
    return _claim(name, value in pin, value, " or ".join(pin))


def tcb_claims(tcb: chain.TdxVerdict, policy: Policy, time: int) -> Iterator[Claim]:
    """What the policy asks of the platform, at `time`."""
    wanted = policy.tdx
    anchor = policy.anchors.anchors().root_key_id
    yield _claim("anchor", tcb.root_key_id == anchor, tcb.anchor, intel_name(anchor))
    yield _claim("tcb_status", tcb.tcb_status in wanted.tcb_status, tcb.tcb_status, " or ".join(wanted.tcb_status))
    unknown = sorted(set(tcb.advisory_ids) - set(wanted.advisories))
    yield _claim("advisories", not unknown, ", ".join(tcb.advisory_ids) or "none", "only those the policy names")
    least = policy.collateral.min_tcb_eval
    yield _claim("tcb_eval", tcb.tcb_eval >= least, tcb.tcb_eval, f"at least {least}")
    age, most = time - tcb.issued, policy.collateral.max_issue_age_s
    yield _claim("issue age", age <= most, f"{age} s", f"at most {most} s")


def register_claims(body: tdx.TdBody, policy: Policy) -> Iterator[Claim]:
    """What the policy asks of the TD."""
    wanted = policy.tdx
    yield _pinned("mr_td", body.mr_td.hex(), wanted.mr_td)
    for i, pin in enumerate((wanted.rtmr0, wanted.rtmr1, wanted.rtmr2)):
        yield _pinned(f"rtmr{i}", body.rtmr[i].hex(), pin)
    yield _pinned("mr_config_id", body.mr_config_id.hex(), wanted.mr_config_id)
    yield _pinned("mr_owner", body.mr_owner.hex(), wanted.mr_owner)
    yield _pinned("mr_owner_config", body.mr_owner_config.hex(), wanted.mr_owner_config)
    yield _pinned("mr_seam", body.mr_seam.hex(), wanted.mr_seam)
    yield _pinned("td_attributes", body.td_attributes.hex(), wanted.td_attributes)
    yield _pinned("xfam", body.xfam.hex(), wanted.xfam)


def event_claims(events: Sequence[eventlog.AaelEvent], policy: Policy, phase: Phase) -> Iterator[Claim]:
    """The exact list of events, and what the policy asks of their contents."""
    seen = tuple((e.domain, e.operation) for e in events)
    operations = eventlog.ORDER if phase == "boot" else (*eventlog.ORDER, eventlog.CAP)
    wanted = tuple((eventlog.DOMAIN, operation) for operation in operations)
    yield _claim("events", seen == wanted, " ".join(o for _, o in seen) or "none", " ".join(operations))
    for operation, pin in policy.events.items():
        yield _pinned(f"event {operation}", event_content(events, operation) or "absent", pin)
    if phase == "released":
        tls, cap = (event_content(events, o) for o in ("tls", eventlog.CAP))
        yield _claim("event released", cap is not None and cap == tls, cap, f"the TLS key, {tls}")


def gpu_claims(
    gpus: Sequence[gpu_chain.GpuClaims], events: Sequence[eventlog.AaelEvent], policy: Policy
) -> Iterator[Claim]:
    """What the policy asks of the GPUs, and that they are those measured at boot."""
    wanted = policy.gpu
    yield _claim("gpu count", len(gpus) == wanted.count, len(gpus), wanted.count)
    anchor, seen = policy.anchors.anchors().nvidia_spki, {gpu.root_spki for gpu in gpus}
    yield _claim(
        "gpu anchor", seen == {anchor}, ", ".join(map(nvidia_name, sorted(seen))) or "none", nvidia_name(anchor)
    )
    measured, shown = event_content(events, "gpu"), gpu_chain.gpu_event(gpus)
    yield _claim("gpu identity", measured == shown, shown, f"the GPUs measured at boot, {measured or 'none'}")
    for i, gpu in enumerate(gpus):
        yield _claim(f"gpu{i} arch", gpu.arch in wanted.arch, gpu.arch, " or ".join(wanted.arch))
        yield _claim(f"gpu{i} mode", gpu.mode in wanted.modes, gpu.mode, " or ".join(wanted.modes))
        new_enough = _version(gpu.driver_version) >= _version(wanted.driver_min)
        yield _claim(f"gpu{i} driver", new_enough, gpu.driver_version, f"at least {wanted.driver_min}")
        yield _pinned(f"gpu{i} vbios", gpu.vbios_version, wanted.vbios)
        yield _claim(f"gpu{i} fwid", gpu.fwid_matched, "bound" if gpu.fwid_matched else "not in the report", "bound")
        yield Claim(
            f"gpu{i} measurements", "not-appraised", "signed by the GPU", "not compared with RIMs in this version"
        )
        yield Claim(f"gpu{i} revocation", "not-appraised", "chain to the anchor", "OCSP not asked in this version")


def _version(text: str) -> tuple[int, ...]:
    """570.124.06 as numbers; what is no version is lower than every version."""
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d+(\.\d+)*", text) else ()


def malformed(code: str, detail: str) -> MalformedEvidence:
    """A refusal of a document around the Evidence."""
    return MalformedEvidence(code, detail, hint="ask the guest for a fresh bundle")
