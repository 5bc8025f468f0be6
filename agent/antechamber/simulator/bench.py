"""`scripts/bench boot`: how long a boot takes, from the agent's process start to the engine's execve.

The broker is a process of its own over TLS; each run is a new agent process on a fresh simulated machine; time inside
the quote device is reported and taken off. Process start has the kernel's resolution, 10 ms.
`scripts/bench broker` is in `bench_broker`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antechamber.errors import AgentError
from antechamber.simulator import bench_broker
from antechamber.simulator.deployment import DISK, CommandFailed, Deployment, Ended, events, prepared, working_folder
from antechamber.simulator.protocol import Remote

_DEADLINE_S = 60


@dataclass(frozen=True, slots=True)
class Run:
    """One boot. Seconds."""

    total_s: float  # start to execve, the quote device included
    quote_s: float
    quotes: int
    stages: dict[str, float]  # ms

    @property
    def exec_s(self) -> float:
        return self.total_s - self.quote_s


def measured(deployment: Deployment, *knobs: str) -> Run:
    """Boot once, and stop as soon as the engine is exec'd."""
    log = deployment.root / "guest.log"
    log.unlink(missing_ok=True)
    guest = deployment.start_guest(*knobs)
    deadline, started = time.monotonic() + _DEADLINE_S, None
    while not (seen := [e for e in events(log) if e["event"] == "engine.exec"]):
        started = started or agent_start(guest.pid)
        if guest.poll() is not None or time.monotonic() > deadline:
            raise CommandFailed("bench.boot", f"no engine: {deployment.refusal()}", hint=f"read {log}")
        time.sleep(0.005)
    quotes, quote_s = json.loads(Remote(deployment.state / "machine.sock")("stats")).values()
    stages = {e["stage"]: e["ms"] for e in events(log) if e["event"] == "stage.end"}
    deployment.stop_guest()
    if started is None:
        raise CommandFailed("bench.start", "the agent's process was not seen", hint="run on Linux with /proc")
    return Run(seen[0]["t"] - started, quote_s, quotes, stages)


def agent_start(simulator: int) -> float | None:
    """CLOCK_MONOTONIC at the start of the agent, the simulator's child that runs `--config`. Source: proc(5), stat."""
    for task in Path("/proc", str(simulator), "task").glob("*/children"):
        for child in task.read_text().split():
            try:
                words = Path("/proc", child, "cmdline").read_bytes().split(b"\0")
                after_name = Path("/proc", child, "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it came and went
                continue
            # forks of the simulator itself, such as its FUSE servers, have its words
            if b"--config" in words and (b"antechamber.simulator" not in words or b"composed" in words):
                suspended = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
                return int(after_name[19]) / os.sysconf("SC_CLK_TCK") - suspended
    return None


def boot(root: Path, runs: int, *, standin: bool) -> dict[str, Any]:
    """Two series, in turn: the quote takes nothing, and the quote takes a second."""
    deployment = prepared(root, lambda text: print(text, file=sys.stderr), standin=standin)
    try:
        measured(deployment)  # warm: bytecode, page cache
        fast, slow = [], []
        for i in range(runs):
            print(f"run {i + 1} of {runs}", file=sys.stderr)
            fast.append(measured(deployment))
            slow.append(measured(deployment, "quote_s=1.0"))
    finally:
        deployment.stop()
    names = fast[0].stages
    return {
        "exec_s": round(statistics.median(r.exec_s for r in fast), 3),
        "quotes": max(r.quotes for r in fast + slow),
        "stages": {n: round(statistics.median(r.stages[n] for r in fast), 1) for n in names},
        "total_s": round(statistics.median(r.total_s for r in fast), 3),
        "total_slow_quote_s": round(statistics.median(r.total_s for r in slow), 3),
        "growth_s": round(statistics.median(s.total_s - f.total_s for f, s in zip(fast, slow, strict=True)), 3),
        "exec_s_min_max": [round(f(r.exec_s for r in fast), 3) for f in (min, max)],
        "runs": runs,
        "model_bytes": sum(f.stat().st_size for f in (root / "model").rglob("*") if f.is_file()),
        "abi": "stand-ins" if standin else "real where the simulator said so",
    }


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} CPUs, {_model()}, Python {platform.python_version()}"


def _model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown CPU"


def _count(text: str) -> int:
    """A number of things to measure: nothing has no median."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Benchmarks. Medians, and the machine.")
    verbs = parser.add_subparsers(dest="what", required=True)
    boots = verbs.add_parser("boot", help="from the agent's process start to the engine's execve", description=__doc__)
    boots.add_argument("--runs", type=_count, default=9, metavar="N", help="of each series (default: 9)")
    boots.add_argument("--standin", action="store_true", help="stand-ins at the ports")
    loads = verbs.add_parser("broker", help="whole releases a second and core", description=bench_broker.__doc__)
    loads.add_argument("--releases", type=_count, default=400, metavar="N", help="of each series (default: 400)")
    loads.add_argument("--clients", type=_count, default=8, metavar="N", help="guests at a time (default: 8)")
    loads.add_argument("--rounds", type=_count, default=3, metavar="N", help="default: 3")
    for one in (boots, loads):
        one.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    try:
        if args.what == "boot":
            with working_folder() as root:
                result = boot(root, args.runs, standin=args.standin)
        else:
            with working_folder(DISK) as root:
                result = bench_broker.broker(root, args.releases, args.clients, args.rounds, bench_broker.say)
    except (AgentError, subprocess.TimeoutExpired) as e:
        print(f"the benchmark failed: {e}", file=sys.stderr)
        return 70
    except Ended:
        return 130
    result["machine"] = _machine()
    print(json.dumps(result) if args.json else "\n".join(f"{k:<28} {v}" for k, v in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
