"""What this broker would decide about saved Evidence, without deciding it: it reads its files and writes nothing."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from antechamber.broker.endorsements import CollateralSets
from antechamber.broker.history import History
from antechamber.broker.messages import Attestation
from antechamber.broker.rules import Rules, load_rules
from antechamber.broker.sessions import SPENT_S
from antechamber.broker.settings import load_settings, read_file
from antechamber.broker.store import Database, has_resource
from antechamber.errors import AgentError, AppraisalRefused, BrokerDenied, MalformedEvidence
from antechamber.evidence import initdata
from antechamber.evidence.anchors import Anchors
from antechamber.evidence.appraise import Claim, VerifiedEvidence
from antechamber.evidence.bundle import Bundle
from antechamber.evidence.collateral import Collateral
from antechamber.evidence.composite import CompositeEvidence, device_nonce, report_data
from antechamber.evidence.examine import Examined, Steps, examine, judge
from antechamber.evidence.explain import Explanation, examine_bundle
from antechamber.evidence.policy import Policy


@dataclass(frozen=True, slots=True)
class WouldBe:
    """One decision: of a resource by its path, of `certificates`, of the `lease`."""

    what: str
    refusal: AgentError | None


@dataclass(frozen=True, slots=True)
class Explained:
    """Each policy's claims, and what the rules would make of them."""

    explanation: Explanation
    decisions: tuple[WouldBe, ...]

    def require(self) -> None:
        """Raises the first refusal, unless something would be released."""
        if any(d.refusal is None for d in self.decisions):
            return
        for decision in self.decisions:
            if decision.refusal is not None:
                raise decision.refusal
        raise BrokerDenied("rules.none", "the rules release nothing", hint="add a rule at the broker")


def explain_attestation(sent: Attestation, policy: Policy, collateral: Collateral, now: int) -> Explanation:
    """An /attest body against one policy."""
    seen = examine_attestation(sent, policy.anchors.anchors(), collateral, now)
    return Explanation("attestation", seen, {"policy": judge(seen, policy, seen.phase)})


def examine_attestation(sent: Attestation, anchors: Anchors, collateral: Collateral, now: int) -> Examined:
    """The steps that /attest takes. That the nonce is fresh only its own session knew.

    Raises MalformedEvidence `evidence.*` for a body that carries none.
    """
    seen = examine(
        CompositeEvidence.from_kbs(sent.primary, sent.additional),
        report_data=report_data(sent.nonce, sent.pubkey, sent.additional),
        gpu_nonce=device_nonce(sent.nonce, sent.pubkey),
        anchors=anchors,
        collateral=collateral,
        now=now,
    )
    nonce = Claim("nonce", "not-appraised", sent.nonce, "a saved body has no freshness")
    quote, text, steps = seen.quote, sent.init_data, Steps()
    if text is not None and quote is not None:
        wanted = "what MRCONFIGID is the digest of"
        steps.take("init-data", wanted, lambda: initdata.require_bound(text.encode(), quote.body.mr_config_id))
    return dataclasses.replace(seen, claims=(nonce, *seen.claims, *steps.claims), errors=(*seen.errors, *steps.errors))


def explain(directory: Path, evidence: Attestation | Bundle, now: int) -> Explained:
    """By the files of a broker's directory, whether it runs or not. Raises ConfigError `broker.*`, `rules.*`."""
    settings = load_settings(directory)
    rules = load_rules(read_file(directory, settings.policy)).rules
    collateral = CollateralSets(str(directory / settings.collateral)).current(now)
    database = Database(str(directory / settings.database), read_only=True)
    anchors = rules.anchors.anchors()
    if isinstance(evidence, Bundle):
        seen = examine_bundle(evidence, anchors, collateral, now)
    else:
        seen = examine_attestation(evidence, anchors, collateral, now)
    judged = {name: judge(seen, policy, seen.phase) for name, policy in rules.policies.items()}
    try:
        decisions = tuple(_decisions(rules, seen, database, now))
    finally:
        database.close()
    kind = "bundle" if isinstance(evidence, Bundle) else "attestation"
    return Explained(Explanation(kind, seen, judged), decisions)


def _decisions(rules: Rules, seen: Examined, database: Database, now: int) -> Iterator[WouldBe]:
    """In the order of `Broker`: what refuses at /attest refuses all; then each by its own rule."""
    history = History(database)
    refusal = _attesting(rules, seen, history, now)
    verified = seen.verified
    for what, decide in _asked(rules, seen, database, history, now).items():
        if refusal is not None or verified is None:
            yield WouldBe(what, refusal)
        else:
            yield WouldBe(what, _refusal(decide, verified))


def _attesting(rules: Rules, seen: Examined, history: History, now: int) -> AgentError | None:
    """What /attest, or the session that it leaves, would refuse everything with."""
    verified = seen.verified
    if verified is None:
        return seen.errors[0]
    if rules.holding(verified) is None:
        return AppraisalRefused(*rules.closest(verified), hint="compare the Evidence with the policies")
    spent = history.spent().get(seen.tls)
    if seen.phase == "boot" and spent is not None and now < spent + SPENT_S:
        return BrokerDenied("session.spent", "this boot has released a key", hint="boot the guest again")
    return None


def _asked(
    rules: Rules, seen: Examined, database: Database, history: History, now: int
) -> dict[str, Callable[[VerifiedEvidence], object]]:
    def resource(path: str) -> Callable[[VerifiedEvidence], None]:
        def decide(verified: VerifiedEvidence) -> None:
            rule = rules.require_resource(path, verified)
            if not has_resource(database, path):
                raise BrokerDenied("resource.missing", f"{path} is allowed, but not here", hint="upload it")
            history.require_release(path, seen.tls, rule, now)

        return decide

    def lease(verified: VerifiedEvidence) -> None:
        rules.require_lease(verified)
        history.require_lease(seen.tls, rules.resources, now)

    asked: dict[str, Callable[[VerifiedEvidence], object]] = {path: resource(path) for path in rules.resources}
    return asked | {"certificates": rules.require_certificate, "lease": lease}


def _refusal(decide: Callable[[VerifiedEvidence], object], verified: VerifiedEvidence) -> AgentError | None:
    try:
        decide(verified)
    except (BrokerDenied, AppraisalRefused, MalformedEvidence) as e:
        return e
    return None
