"""The broker's benchmark, tiny: that it measures what it says, not how much."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from brokers import Rig, rule, running

from antechamber.simulator.bench import main
from antechamber.simulator.load import Endpoint, LoadFailed, Park, Series, run


@pytest.fixture
def rig(tmp_path: Path):
    with running(tmp_path / "broker") as rig:
        yield rig


def endpoint(rig: Rig) -> Endpoint:
    return Endpoint.of(int(rig.url.rpartition(":")[2]), rig.directory / "broker-ca.pem")


def test_benchmark_reports_every_figure_and_the_machine() -> None:
    command = [sys.executable, "-m", "antechamber.simulator.bench", "broker", "--json"]
    done = subprocess.run(
        [*command, "--releases", "6", "--clients", "2", "--rounds", "1"], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout)
    rates = {"release_per_s_core", "release_per_s", "new_gpus_release_per_s_core", "light_release_per_s_core"}
    times = {"p50_ms", "p99_ms", "new_gpus_p99_ms", "light_p50_ms", "light_p99_ms", "fsync_ms"}
    assert all(seen[name] > 0 for name in rates | times)
    assert seen["p50_ms"] <= seen["p99_ms"]
    assert seen["light_p50_ms"] <= seen["light_p99_ms"]
    assert (seen["releases"], seen["clients"], seen["rounds"], seen["gpus"]) == (6, 2, 1, 64)
    assert seen["pinned"] == (len(os.sched_getaffinity(0)) > 1)
    assert {"machine", "openssl", "rss_mib", "broker_busy", "generator_busy"} <= set(seen)


@pytest.mark.parametrize("arguments", [("broker", "--releases"), ("broker", "--rounds"), ("boot", "--runs")], ids=str)
def test_benchmark_of_nothing_is_a_usage_error(
    arguments: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments, "0"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "0 is less than 1" in capsys.readouterr().err


def test_every_release_of_a_series_is_a_guest_of_its_own(rig: Rig) -> None:
    guests = Park(rig.intel, rig.nvidia).guests(5, range(2))
    series = run(endpoint(rig), guests, clients=2)
    assert len(series.latencies_s) == 5
    assert [d for d, _ in rig.decisions()].count("released") == 5
    assert len({g.log for g in guests}) == len({g.guest.tls_event for g in guests}) == 5
    assert len({g.guest.machine.gpus[0].uuid for g in guests}) == 2


def test_series_fails_when_the_broker_refuses_one_guest(rig: Rig) -> None:
    rig.rewrite(resources={"default/model-key/demo": rule("boot", releases={"max": 2, "per_s": 3600})})
    with pytest.raises(LoadFailed) as refused:
        run(endpoint(rig), Park(rig.intel, rig.nvidia).guests(3, range(1)), clients=1)
    assert refused.value.code == "load.status"
    assert "rules.releases" in refused.value.detail


@pytest.mark.parametrize(("count", "percent", "rank"), [(1, 99, 1), (100, 99, 99), (100, 50, 50), (3, 50, 2)])
def test_percentile_is_the_nearest_rank(count: int, percent: int, rank: int) -> None:
    series = Series(tuple(float(i + 1) for i in range(count)), 1.0, 1.0)
    assert series.percentile_ms(percent) == rank * 1000
