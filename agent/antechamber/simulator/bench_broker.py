"""`scripts/bench broker`: whole releases a second and core, by guests that the broker has never seen.

The broker is the production command in a process of its own, with real TLS and its database on a disk; the load comes
from this process. Where there are two processors each has one. Every release is a new guest with fresh keys, so nothing
is answered from what is known of it; what the broker may know from before are the GPUs' certificates, so both are
measured: a park of `GPUS` devices that it has met, and devices that it meets for the first time.
"""

import os
import ssl
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from antechamber.simulator.deployment import MODEL_KEY, Deployment
from antechamber.simulator.fleet import KEY, found_broker, rule
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.load import Endpoint, Park, Ready, Series, run
from antechamber.simulator.nvidia import NvidiaPki

GPUS = 64
_DISTINCT = 1 << 20  # from this number on, each GPU stands in one guest only
_LIGHT = 5  # the light load has this part of the releases


@dataclass(frozen=True, slots=True)
class Measured:
    """One series, from both ends."""

    load: Series
    broker_cpu_s: float

    @property
    def per_s_core(self) -> float:
        return len(self.load.latencies_s) / self.broker_cpu_s

    @property
    def broker_busy(self) -> float:
        """Part of the time that the broker was on a processor."""
        return self.broker_cpu_s / self.load.wall_s


def broker(root: Path, releases: int, clients: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Three series a round: known GPUs, new GPUs, and one guest at a time. Each figure is the rounds' median."""
    intel, nvidia = IntelPki(), NvidiaPki()
    deployment = Deployment(root)
    found_broker(deployment.broker_dir, intel, nvidia, {MODEL_KEY: rule("boot")})
    (root / "model.key").write_bytes(KEY)
    say("starting the broker")
    deployment.start_broker()
    processors = os.sched_getaffinity(0)
    try:
        process = psutil.Process(deployment.broker_pid)
        pinned = _separate(process)
        endpoint = Endpoint.of(deployment.broker_port, deployment.broker_dir / "broker-ca.pem")
        park, known, new = Park(intel, nvidia), range(GPUS), iter(range(_DISTINCT, 2 * _DISTINCT, releases))

        def series(guests: list[Ready], at_once: int) -> Measured:
            before = _cpu_s(process)
            load = run(endpoint, guests, at_once)
            return Measured(load, _cpu_s(process) - before)

        say(f"warming up: each of {GPUS} GPUs once")
        series(park.guests(GPUS, known), clients)
        resident = process.memory_info().rss
        fleet, distinct, light = [], [], []
        for i in range(rounds):
            say(f"round {i + 1} of {rounds}: {releases} guests on known GPUs")
            fleet.append(series(park.guests(releases, known), clients))
            say(f"  {fleet[-1].per_s_core:.0f} releases a second and core; as many on new GPUs")
            start = next(new)
            distinct.append(series(park.guests(releases, range(start, start + releases)), clients))
            say(f"  {distinct[-1].per_s_core:.0f}; one guest at a time")
            light.append(series(park.guests(max(releases // _LIGHT, 1), known), 1))
        grown = process.memory_info().rss - resident
    finally:
        os.sched_setaffinity(0, processors)
        deployment.stop()
    return _result(fleet, distinct, light) | {
        "clients": clients,
        "releases": releases,
        "rounds": rounds,
        "gpus": GPUS,
        "pinned": pinned,
        "rss_mib": round(resident / 2**20, 1),
        "rss_grown_mib": round(grown / 2**20, 1),
        "fsync_ms": round(_fsync_ms(root), 2),
        "openssl": ssl.OPENSSL_VERSION,
    }


def _result(fleet: list[Measured], distinct: list[Measured], light: list[Measured]) -> dict[str, Any]:
    def median(series: list[Measured], figure: Callable[[Measured], float], digits: int = 1) -> float:
        return round(statistics.median(map(figure, series)), digits)

    rates = sorted(m.per_s_core for m in fleet)
    return {
        "release_per_s_core": median(fleet, lambda m: m.per_s_core),
        "release_per_s_core_min_max": [round(rates[0], 1), round(rates[-1], 1)],
        "release_per_s": median(fleet, lambda m: m.load.per_s),
        "p50_ms": median(fleet, lambda m: m.load.percentile_ms(50)),
        "p99_ms": median(fleet, lambda m: m.load.percentile_ms(99)),
        "new_gpus_release_per_s_core": median(distinct, lambda m: m.per_s_core),
        "new_gpus_release_per_s": median(distinct, lambda m: m.load.per_s),
        "new_gpus_p99_ms": median(distinct, lambda m: m.load.percentile_ms(99)),
        "light_release_per_s_core": median(light, lambda m: m.per_s_core),
        "light_p50_ms": median(light, lambda m: m.load.percentile_ms(50)),
        "light_p99_ms": median(light, lambda m: m.load.percentile_ms(99)),
        "broker_busy": median(fleet, lambda m: m.broker_busy, 2),
        "generator_busy": median(fleet, lambda m: m.load.cpu_s / m.load.wall_s, 2),
    }


def _cpu_s(process: psutil.Process) -> float:
    """User and system, of all threads, as the scheduler counts them. Source: clock_getcpuclockid(3)."""
    return time.clock_gettime((~process.pid << 3) | 2)


def _separate(process: psutil.Process) -> bool:
    """The broker on one processor and we on the others; False where there is only one."""
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        return False
    for thread in process.threads():
        os.sched_setaffinity(thread.id, mine[:1])
    os.sched_setaffinity(0, mine[1:])
    return True


def _fsync_ms(root: Path) -> float:
    """What the disk takes for one small record: a release waits for several."""
    times = []
    with (root / "fsync").open("wb") as file:
        for _ in range(20):
            file.write(bytes(4096))
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def say(text: str) -> None:
    print(text, file=sys.stderr)
