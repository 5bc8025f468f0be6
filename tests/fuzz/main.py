"""Fuzz the parsers, one libFuzzer process a target; a finding ends with status 1. `scripts/fuzz` starts it."""

import argparse
import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fuzz.contract import CORPUS, RSS_MB, TIMEOUT_S, Target, file_name
from fuzz.targets import NAMES, load

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".fuzz"
MAX_FILES, MAX_BYTES = 150, 400_000  # of one committed corpus
_SHOWN = 6000  # bytes of a reproducer that is printed whole
_WINDOW = 24  # bytes: what has as many in common with real evidence comes from it


@dataclass(frozen=True, slots=True)
class Result:
    """What one run measured."""

    target: str
    seconds: int
    executions: int
    corpus: int
    edges: int
    features: int
    findings: tuple[str, ...]


class Place:
    """A target's directories below `.fuzz`, and its launcher."""

    def __init__(self, target: Target) -> None:
        self.target, self.root = target, WORK / target.name
        self.corpus, self.seeds, self.findings = (self.root / n for n in ("corpus", "seeds", "findings"))
        for directory in (self.corpus, self.seeds, self.findings):
            directory.mkdir(parents=True, exist_ok=True)
        self.launcher, self.words = self.root / "launch", self.root / "words"
        self.words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        command = shlex.join([sys.executable, "-m", "fuzz.one", target.name, str(self.findings), str(self.launcher)])
        self.launcher.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT / "tests"))} exec {command} "$@"\n')
        self.launcher.chmod(0o755)

    def begin(self) -> None:
        """Fresh seeds, real evidence among them where there is any, and no findings."""
        for old in (*self.findings.iterdir(), *self.seeds.iterdir()):
            old.unlink()
        for data in (*self.target.seeds(), *self.target.vectors()):
            (self.seeds / file_name(data)).write_bytes(data)

    def start(self, log: str, *arguments: str | Path) -> tuple[int, str]:
        """Status and output of one libFuzzer process; the output is kept as `log`."""
        limits = (
            f"-timeout={TIMEOUT_S}",
            f"-rss_limit_mb={RSS_MB}",
            f"-max_len={self.target.max_len}",
            "-report_slow_units=60",
        )
        command = [str(self.launcher), *limits, f"-artifact_prefix={self.findings}/", *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        output = done.stdout.decode(errors="replace")
        (self.root / log).write_text(output)
        return done.returncode, output


def _escaped(word: str) -> str:
    return "".join(chr(b) if 0x20 < b < 0x7F and b not in b'"\\' else f"\\x{b:02X}" for b in word.encode())


def fuzz(name: str, seconds: int) -> Result:
    """For `seconds`, or until a hang or a crash."""
    place = Place(load(name))
    place.begin()
    committed = CORPUS / name
    folders = [place.corpus, place.seeds, *([committed] if committed.is_dir() else [])]
    began = time.monotonic()
    words = [f"-dict={place.words}"] if place.target.words else []
    status, output = place.start("log", *folders, *words, f"-max_total_time={seconds}", "-print_final_stats=1")
    ran = round(time.monotonic() - began)
    last = (re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", output) or [("0", "0", "0")])[-1]
    executed = re.search(r"stat::number_of_executed_units: (\d+)", output)
    findings = sorted(p.name for p in place.findings.iterdir() if p.suffix != ".txt")
    if not findings and (status or executed is None):
        findings = [f"the fuzzer ended with status {status}: see {place.root / 'log'}"]
    edges, features, corpus = map(int, last)
    return Result(name, ran, int(executed[1]) if executed else 0, corpus, edges, features, tuple(findings))


def report(result: Result) -> None:
    """One line, and every finding with what reproduces it."""
    print(
        f"{result.target:<12} {result.seconds:>4} s {result.executions:>9} executions, corpus {result.corpus:>4}, "
        f"{result.edges} edges, {result.features} features, {len(result.findings)} findings",
        flush=True,
    )
    folder = WORK / result.target / "findings"
    for name in result.findings:
        print(f"  {name}")
        if (told := folder / f"{name}.txt").is_file():
            print("".join(f"    {line[:200]}\n" for line in told.read_text().splitlines()[-12:]), end="")
        if (input_ := folder / name).is_file():
            data = input_.read_bytes()
            shown = base64.b64encode(data).decode() if len(data) <= _SHOWN else str(input_)
            print(f"    {len(data)} bytes: {shown}")
        else:
            print("".join(f"    {line}\n" for line in (WORK / result.target / "log").read_text().splitlines()[-20:]))
    with (WORK / "results.jsonl").open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def minimise(name: str) -> None:
    """Merge seeds, kept corpus and what runs found into the kept corpus: small, and nothing of real evidence."""
    place = Place(load(name))
    merged, committed, own = place.root / "merged", CORPUS / name, place.root / "own"
    for directory in (merged, own):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
    seeds = list(place.target.seeds())
    real = _windows(place.target.vectors()) - _windows(seeds)
    committed.mkdir(parents=True, exist_ok=True)
    for data in (*seeds, *_contents(place.corpus), *_contents(committed)):
        if not _windows([data]) & real:
            (own / file_name(data)).write_bytes(data)
    place.start("log.merge", "-merge=1", merged, own)
    found = sorted((path.read_bytes() for path in merged.iterdir()), key=len)
    kept: list[bytes] = []
    for data in (*sorted(seeds, key=len), *found):
        if data not in kept and len(kept) < MAX_FILES and sum(map(len, kept)) + len(data) <= MAX_BYTES:
            kept.append(data)
    for path in committed.iterdir():
        path.unlink()
    for data in kept:
        (committed / file_name(data)).write_bytes(data)
    print(f"{name:<12} {len(found)} of {len(list(own.iterdir()))} add something, {len(kept)} kept")


def _contents(directory: Path) -> Iterator[bytes]:
    for path in directory.iterdir():
        with suppress(FileNotFoundError):  # a run that goes on has found a smaller one
            yield path.read_bytes()


def _windows(inputs: "list[bytes] | tuple[bytes, ...]") -> set[bytes]:
    return {data[i : i + _WINDOW] for data in inputs for i in range(len(data) - _WINDOW + 1)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz",
        description="Fuzz the parsers with Atheris (libFuzzer). Status 1 if anything but a refusal came out.",
        epilog=f"targets: {', '.join(NAMES)}. Corpora that grow lie in .fuzz, the kept ones in tests/fuzz/corpus.",
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=int, default=30, help="for each target (default: 30)")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time (default: 2)")
    parser.add_argument(
        "--minimise", action="store_true", help="do not fuzz: merge what was found into the kept corpus"
    )
    args = parser.parse_args(argv)
    names = args.targets or list(NAMES)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no target {', '.join(unknown)}; targets are {', '.join(NAMES)}")
    if min(args.seconds, args.jobs) < 1:
        parser.error("--seconds and --jobs need at least 1")  # libFuzzer takes 0 for no end
    for name in names:
        load(name)  # all now: the tree may change while the first ones run
    os.nice(10)
    bad = False
    with ThreadPoolExecutor(args.jobs) as pool:
        if args.minimise:
            list(pool.map(minimise, names))
            return 0
        for result in pool.map(lambda name: fuzz(name, args.seconds), names):
            report(result)
            bad |= bool(result.findings)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
