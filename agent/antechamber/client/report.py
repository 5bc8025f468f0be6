"""An Attestation Result for people, claim by claim, and for programs."""

import datetime as dt
import sys
from typing import Any

from antechamber.evidence.appraise import AttestationResult, Claim

_MARKS = {"held": "✔", "failed": "✘", "not-appraised": "–"}
_ASCII = {"held": "+", "failed": "X", "not-appraised": "-"}
_COLOURS = {"held": "32", "failed": "31;1", "not-appraised": "33"}
_WIDTH = 56  # characters of a value; a failed claim shows all


def as_json(result: AttestationResult) -> dict[str, Any]:
    """One object: `ok`, `anchor`, `simulated`, `time` (seconds since the epoch), `claims`."""
    claims = [
        {"name": c.name, "outcome": c.outcome, "seen": c.seen, "wanted": c.wanted, "code": c.code}
        for c in result.claims
    ]
    return {
        "ok": result.ok,
        "anchor": result.anchor,
        "simulated": result.simulated,
        "time": result.time,
        "claims": claims,
    }


def as_text(result: AttestationResult, *, colour: bool = False, ascii_only: bool | None = None) -> str:
    """A line a claim, then the conclusion. `ascii_only` None: as stdout's encoding allows."""
    if ascii_only is None:
        ascii_only = not _takes_all()
    width = max((len(c.name) for c in result.claims), default=0)
    lines = [_claim(c, width, ascii_only, colour) for c in result.claims]
    return "\n".join([*lines, _conclusion(result, ascii_only)])


def _claim(claim: Claim, width: int, ascii_only: bool, colour: bool) -> str:
    mark = (_ASCII if ascii_only else _MARKS)[claim.outcome]
    if colour:
        mark = f"\x1b[{_COLOURS[claim.outcome]}m{mark}\x1b[0m"
    head = f"{mark} {plain(claim.name, ascii_only):<{width}}  "
    if claim.outcome == "failed":
        indent = "\n" + " " * (width + 4)
        return (
            f"{head}{claim.code}{indent}is {plain(claim.seen, ascii_only)}{indent}not {plain(claim.wanted, ascii_only)}"
        )
    seen = _short(plain(claim.seen, ascii_only))
    note = f"  ({plain(claim.wanted, ascii_only)})" if claim.outcome == "not-appraised" else ""
    return head + seen + note


def _conclusion(result: AttestationResult, ascii_only: bool) -> str:
    count = {outcome: sum(c.outcome == outcome for c in result.claims) for outcome in _MARKS}
    text = ", ".join(f"{n} {outcome.replace('-', ' ')}" for outcome, n in count.items())
    at = dt.datetime.fromtimestamp(result.time, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    word = "ACCEPTED" if result.ok else "REFUSED"
    anchor = plain(result.anchor, ascii_only)
    loud = "  SIMULATED HARDWARE: proves nothing about a real machine\n" if result.simulated else ""
    return f"{loud}{word}: {text}; anchor {anchor}, judged at {at}"


def plain(text: str, ascii_only: bool) -> str:
    """What a guest wrote, without anything that a terminal would obey."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown.encode("ascii", "replace").decode() if ascii_only else shown


def shown(text: str) -> str:
    """`plain`, as stdout's encoding allows."""
    return plain(text, not _takes_all())


def _takes_all() -> bool:
    return _takes("".join(_MARKS.values()), sys.stdout.encoding or "ascii")


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 13]}...{text[-10:]}"


def _takes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
