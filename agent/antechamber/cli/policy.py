"""Commands on policies: explain, check."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antechamber import strict
from antechamber.cli.relying import read
from antechamber.errors import ConfigError, MalformedEvidence

if TYPE_CHECKING:
    from antechamber.broker.explain import WouldBe
    from antechamber.broker.messages import Attestation
    from antechamber.evidence.bundle import Bundle
    from antechamber.evidence.explain import Explanation


def moment(text: str) -> int:
    """`2026-11-24T10:00:00Z`. Raises ArgumentTypeError."""
    try:
        return strict.parse_utc(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not such as 2026-11-24T10:00:00Z") from e


def explain(args: argparse.Namespace) -> int:
    """`antechamber policy explain EVIDENCE`: exit status 0 only if the policy holds, or something would be released."""
    from antechamber.broker import explain as broker
    from antechamber.evidence.bundle import Bundle
    from antechamber.evidence.explain import explain_bundle
    from antechamber.evidence.policy import load_policy

    evidence, now = _evidence(args.evidence), int(time.time())
    at = now if args.at is None else args.at
    if args.broker:
        _no_collateral(args, "the broker's own is used")
        explained = broker.explain(Path(args.broker), evidence, at)
        _print(args, explained.explanation, explained.decisions)
        explained.require()
        return 0
    policy = load_policy(read(args.policy))
    if isinstance(evidence, Bundle):
        _no_collateral(args, "a bundle carries its own")
        explanation = explain_bundle(evidence, policy, args.at, now)
    else:
        explanation = broker.explain_attestation(evidence, policy, _collateral(args, at), at)
    _print(args, explanation, ())
    explanation.require("policy")
    return 0


def _evidence(path: str) -> "Attestation | Bundle":
    """Raises MalformedEvidence `kbs.*`, `bundle.*`: what is no bundle must be the body of an /attest."""
    from antechamber.broker.messages import MAX_ATTESTATION, Attestation
    from antechamber.evidence.bundle import parse_bundle

    raw = sys.stdin.buffer.read(MAX_ATTESTATION + 1) if path == "-" else read(path)
    value: Any = strict.load_json(raw, error=MalformedEvidence, family="kbs", limit=MAX_ATTESTATION)
    return parse_bundle(raw) if isinstance(value, dict) and "format" in value else Attestation.parse(raw)


def _no_collateral(args: argparse.Namespace, why: str) -> None:
    if args.collateral:
        raise ConfigError("cli.collateral", f"--collateral {args.collateral}: {why}", hint="leave --collateral out")


def _collateral(args: argparse.Namespace, at: int) -> Any:
    from antechamber.evidence.collateral import Collateral, TdxCollateral

    if not args.collateral:
        hint = "give --collateral FILE, or --broker DIR"
        raise ConfigError("cli.collateral", "the body of an /attest carries no collateral", hint=hint)
    return Collateral(at, b"", (TdxCollateral.parse(read(args.collateral)),))


def _print(args: argparse.Namespace, explanation: "Explanation", decisions: "tuple[WouldBe, ...]") -> None:
    from antechamber.client import report

    if args.json:
        print(json.dumps(_document(explanation, decisions)))
        return
    colour = sys.stdout.isatty()
    print(f"verification of the {explanation.kind}, a guest in phase {explanation.seen.phase}")
    print(report.as_text(explanation.verification, colour=colour))
    for name, result in explanation.policies.items():
        print(f"\npolicy {report.shown(name)}")
        print(report.as_text(result, colour=colour))
    if decisions:
        print("\nwould be decided")
    for decision in decisions:
        refusal = decision.refusal
        said = "ALLOWED" if refusal is None else f"REFUSED  {refusal.code}: {refusal.detail}"
        print(f"  {decision.what:<40} {report.shown(said)}")


def _document(explanation: "Explanation", decisions: "tuple[WouldBe, ...]") -> dict[str, Any]:
    from antechamber.client import report

    return {
        "evidence": explanation.kind,
        "phase": explanation.seen.phase,
        "verification": report.as_json(explanation.verification),
        "policies": {name: report.as_json(result) for name, result in explanation.policies.items()},
        "decisions": [
            {"what": d.what, "outcome": "allowed", "code": "", "detail": ""}
            if d.refusal is None
            else {"what": d.what, "outcome": "refused", "code": d.refusal.code, "detail": d.refusal.detail}
            for d in decisions
        ],
    }


def check(args: argparse.Namespace) -> int:
    """`antechamber policy check`: what parses, and what it leaves open. Raises ConfigError `policy.*`, `rules.*`."""
    from antechamber.evidence.policy import load_policy, open_ends

    found = _rules(Path(args.broker)) if args.broker else {"policy": list(open_ends(load_policy(read(args.file))))}
    if args.json:
        print(json.dumps(found))
        return 0
    for name, ends in found.items():
        print(f"{name}: {'nothing is left open' if not ends else 'accepts, in so many words:'}")
        for end in ends:
            print(f"  {end}")
    return 0


def _rules(directory: Path) -> dict[str, list[str]]:
    from antechamber.broker import rules as broker_rules
    from antechamber.broker.settings import load_settings, read_file
    from antechamber.evidence.policy import open_ends

    rules = broker_rules.load_rules(read_file(directory, load_settings(directory).policy)).rules
    found = {f"policy {name}": list(open_ends(policy)) for name, policy in rules.policies.items()}
    found |= {f"resource {path}": list(broker_rules.open_ends(rule)) for path, rule in rules.resources.items()}
    denied = [name for name in ("certificates", "lease") if getattr(rules, name) is None]
    return found | {name: ["nobody: no rule names it"] for name in denied}
