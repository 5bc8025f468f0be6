"""Verdicts as a table and as JSON, deviations as the table of docs/kbs.md."""

import json
from collections import Counter
from collections.abc import Sequence

from interop.kit.catalog import CATALOG
from interop.kit.core import Verdict, deviations

from antechamber.client.report import shown

_MARKS = {"pass": "pass", "fail": "FAIL", "deviation": "dev.", "not-applicable": "n/a "}


def table(verdicts: Sequence[Verdict]) -> str:
    lines = [f"{'':4}  {'section':7}  {'scenario':24}  what must be seen"]
    for v in verdicts:
        lines.append(f"{_MARKS[v.outcome]}  {v.section:7}  {v.id:24}  {v.title}")
        if v.detail:
            detail = shown(v.detail)  # a server's words, onto a terminal
            lines.append(f"{'':41}{'deviation: ' if v.outcome == 'deviation' else ''}{detail}")
    counts = Counter(v.outcome for v in verdicts)
    lines.append(", ".join(f"{counts[o]} {o}" for o in _MARKS))
    return "\n".join(lines)


def as_json(verdicts: Sequence[Verdict], url: str, profile: str) -> str:
    counts = Counter(v.outcome for v in verdicts)
    listed = [{n: getattr(v, n) for n in ("id", "section", "title", "outcome", "detail")} for v in verdicts]
    return json.dumps({"url": url, "profile": profile, "counts": dict(counts), "verdicts": listed}, indent=1)


def markdown() -> str:
    """The deviations, as docs/kbs.md has them."""
    lines = ["| where | Trustee | here | why | scenario |", "|---|---|---|---|---|"]
    for d in deviations():
        lines.append(f"| {d.role}, {d.section} | {d.trustee} | {d.ours} | {d.reason} | {_code(d.scenario)} |")
    return "\n".join(lines)


def _code(scenario: str) -> str:
    return f"`{scenario}`" if scenario else ""


def catalogue() -> str:
    return "\n".join(f"{section:7}  {name:24}  {title}" for name, (section, title) in CATALOG.items())
