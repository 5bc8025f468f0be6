"""`scripts/test --guards`: disable each guard in a copy, and see that the tests of its threats then fail.

A guard survives where a test of its does not notice that it is gone. What counts is a failed test: one that breaks on
the edit itself, is not collected, is skipped or never ends shows nothing.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from guards import table
from guards.copies import Copy, copies
from guards.table import Guard, Row, Unusable

T = TypeVar("T")
Verdict = Literal["fails", "survives", "broken", "not run"]
WORKERS = 2
LIMIT_S = 180.0  # one guard's tests
# What an edit that is no Python any more, or names what is not there, makes of a test.
_OF_THE_EDIT = {"AttributeError", "ImportError", "IndentationError", "ModuleNotFoundError", "NameError", "SyntaxError",
                "TypeError", "UnboundLocalError"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """What one row's test did without its guard."""

    number: int
    threat: str
    guard: str
    test: str
    verdict: Verdict
    said: str


@dataclass(frozen=True, slots=True)
class Ran:
    """One pytest process: reports by test, and how it ended if not by itself."""

    reports: tuple[dict[str, str], ...]
    trouble: str

    def of(self, row: Row) -> list[dict[str, str]]:
        return [r for r in self.reports if r["test"] == row.test or r["test"].startswith(row.test + "[")]


def pytest(copy: Copy, tests: Sequence[str], limit_s: float = LIMIT_S) -> Ran:
    """Run these in the copy, in a fresh process."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as outcomes:
        argv = [str(copy.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "guards.outcomes"]
        argv += [f"--outcomes={outcomes.name}", *dict.fromkeys(tests)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
        # in tests/, so that node ids are as the list has them and the plugin is found
        with subprocess.Popen(
            argv,
            cwd=copy.root / "tests",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=limit_s)
                trouble = "" if process.returncode in (0, 1) else " ".join(output.split())[-400:]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                trouble = f"no end within {limit_s:g} s"
        return Ran(tuple(map(json.loads, outcomes.read().splitlines())), trouble)


def judge(row: Row, ran: Ran) -> Seen:
    """The row fails if a test of it failed, as a test and not as a program."""

    def seen(verdict: Verdict, said: str) -> Seen:
        return Seen(row.number, row.threat, row.guard, row.test, verdict, said)

    reports = ran.of(row)
    calls = [r for r in reports if r["when"] == "call"]
    skipped = [r for r in reports if r["outcome"] == "skipped"]
    failed = [r for r in calls if r["outcome"] == "failed"]
    if wrong := [r for r in reports if r["outcome"] == "failed" and (r not in calls or r["error"] in _OF_THE_EDIT)]:
        return seen("broken", f"{wrong[0]['when']}: {wrong[0]['error']}: {wrong[0]['said']}")
    if failed:
        return seen("fails", f"{failed[0]['error']}: {failed[0]['said']}")
    if ran.trouble or not reports:
        return seen("broken", ran.trouble or "not collected")
    if skipped and len(skipped) == len([r for r in reports if r["when"] == "setup"]):
        return seen("not run", skipped[0]["said"])
    return seen("survives", f"{len(calls)} passed")


def require_passing(made: Sequence[Copy], rows: Sequence[Row], say: Callable[[str], None]) -> None:
    """Unmodified, every test passes or is skipped; else nothing that follows would mean anything. Raises Unusable."""
    start, troubles = time.monotonic(), []

    def half(copy: Copy, own: Sequence[Row]) -> None:
        ran = pytest(copy, [r.test for r in own], LIMIT_S * 4)
        found = [(r, judge(r, ran)) for r in own]
        troubles.extend(f"{r.test}: {s.verdict}: {s.said}" for r, s in found if s.verdict in ("fails", "broken"))

    each(made, [part for n in range(len(made)) if (part := rows[n :: len(made)])], half)  # none is not: all tests
    if troubles:
        raise Unusable("with every guard in place:\n" + "\n".join(troubles))
    say(f"with every guard in place: {len(rows)} rows, {time.monotonic() - start:.1f} s")


def each(made: Sequence[Copy], jobs: Sequence[T], work: Callable[[Copy, T], None]) -> None:
    """Every job on some copy, each copy one at a time. Raises what a job raised."""
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in made:
        free.put(copy)

    def one(job: T) -> None:
        copy = free.get()
        try:
            work(copy, job)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(made)) as pool:
        try:
            list(pool.map(one, jobs))
        finally:
            pool.shutdown(cancel_futures=True)


def run(root: Path, names: Sequence[str], say: Callable[[str], None]) -> list[Seen]:
    """All rows of the named guards, or of all. Raises Unusable."""
    guards = table.load_guards((root / table.GUARDS).read_text())
    rows = table.by_guard(table.load_rows((root / table.THREATS).read_text()), guards)
    if unknown := set(names) - set(guards):
        raise Unusable(f"no such guard: {', '.join(sorted(unknown))}")
    chosen = [guards[name] for name in (names or guards)]
    table.require_in_place(guards, root / table.SOURCE)
    found: list[Seen] = []
    with tempfile.TemporaryDirectory(prefix="antechamber-guards-") as parent, copies(WORKERS, Path(parent)) as made:
        require_passing(made, [r for guard in chosen for r in rows[guard.name]], say)

        def disable(copy: Copy, guard: Guard) -> None:
            start = time.monotonic()
            with copy.without(guard):
                ran = pytest(copy, [r.test for r in rows[guard.name]])
            seen = [judge(r, ran) for r in rows[guard.name]]
            found.extend(seen)
            done = len({s.guard for s in found})
            told = ", ".join(dict.fromkeys(s.verdict for s in seen))
            say(f"[{done:3}/{len(chosen)}] {guard.name:32} {time.monotonic() - start:5.1f} s  {told}")

        each(made, chosen, disable)
    return sorted(found, key=lambda s: s.number)


def allowed(seen: Seen, marks: str | None) -> bool:
    """As pytest's --allow-skips has it: without it a machine may lack anything."""
    return marks is None or any(f"[{mark}]" in seen.said for mark in marks.split(",") if mark)


def summary(found: Sequence[Seen], marks: str | None) -> tuple[str, int]:
    """The table of what did not fail, and the exit status."""
    lines, status = [], 0
    for seen in found:
        if seen.verdict == "fails":
            continue
        bad = seen.verdict != "not run" or not allowed(seen, marks)
        status |= bad
        lines.append(f"{'!' if bad else ' '} {seen.number:3}  {seen.verdict:8}  {seen.guard}: {seen.test}")
        lines.append(f"       {seen.said}")
    counted = {v: sum(s.verdict == v for s in found) for v in ("fails", "survives", "broken", "not run")}
    guards = len({s.guard for s in found})
    lines.append(
        f"{guards} guards, {len(found)} threats: without its guard {counted['fails']} tests fail, "
        f"{counted['survives']} survive, {counted['broken']} are broken, {counted['not run']} not run"
    )
    return "\n".join(lines), status


def main(argv: Sequence[str] | None = None, root: Path = table.ROOT) -> int:
    """0 if no guard survives, 1 if one does, 2 if the list and the code have come apart."""
    parser = argparse.ArgumentParser(prog="scripts/test --guards", description=__doc__)
    parser.add_argument("guard", nargs="*", help="only these guards of tests/attack/guards.toml")
    parser.add_argument("--json", action="store_true", help="each row as JSON, on stdout")
    parser.add_argument("--allow-skips", metavar="MARKS", help="marks whose tests this machine need not run (CI)")
    parser.add_argument("--renumber", action="store_true", help="only number the rows of THREATS.md again")
    args = parser.parse_args(argv)
    if args.renumber:
        path = root / table.THREATS
        path.write_text(table.renumbered(path.read_text()))
        return 0
    start = time.monotonic()
    try:
        found = run(root, args.guard, lambda line: print(line, file=sys.stderr, flush=True))
    except Unusable as e:
        print(f"guards: {e}", file=sys.stderr)
        return 2
    text, status = summary(found, args.allow_skips)
    if args.json:
        print(json.dumps({"ok": status == 0, "rows": [asdict(s) for s in found]}, indent=1))
    else:
        print(f"{text}, in {time.monotonic() - start:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
