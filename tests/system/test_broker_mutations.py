"""10,000 one-field mutations against a running broker: no release, no 500, no growth; a part of them in every run.

All: `ANTECHAMBER_MUTATIONS=all pytest tests/system/test_broker_mutations.py`, about a minute and a half.
"""

import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import mutations
import psutil
import pytest
from mutations.run import Rig

from antechamber.simulator.deployment import DISK, MODEL_KEY, Deployment, scratch
from antechamber.simulator.fleet import KEY, found_broker, rule
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.load import Park
from antechamber.simulator.nvidia import NvidiaPki

ALL, SOME, WARM = 10_700, 500, 1000
REFUSED = 10_000  # of all: what is neutral is no attack
COUNT = ALL if os.environ.get("ANTECHAMBER_MUTATIONS") == "all" else SOME
GROWTH = 8 << 20  # bytes


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    root = scratch(DISK)
    deployment = Deployment(root)
    try:
        yield deployment
    finally:
        deployment.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def rig(deployment: Deployment) -> Rig:
    intel, nvidia = IntelPki(), NvidiaPki()
    found_broker(deployment.broker_dir, intel, nvidia, {MODEL_KEY: rule("boot")})
    Path(deployment.root, "model.key").write_bytes(KEY)
    deployment.start_broker()
    park, number = Park(intel, nvidia), count()
    return Rig(
        deployment.broker_port, deployment.broker_dir, lambda: park.guests(1, range(n := next(number) % 8, n + 1))[0]
    )


def test_mutations_are_as_many_as_they_are_said_to_be() -> None:
    named = mutations.everything(ALL)
    assert len({m.name for m in named}) == len(named) == ALL


def test_no_mutation_is_released_faults_or_leaves_anything_behind(rig: Rig, deployment: Deployment) -> None:
    wanted = mutations.everything(ALL)
    if COUNT < ALL:
        wanted = wanted[:: ALL // COUNT]
    broker = psutil.Process(deployment.broker_pid)
    assert rig.good_release()
    findings = rig.send(wanted[:WARM])
    before = broker.memory_info().rss, broker.num_threads(), broker.num_fds()
    rest = rig.send(wanted[WARM:])
    assert rig.good_release()
    after = broker.memory_info().rss, broker.num_threads(), broker.num_fds()
    print(len(wanted), sorted((findings.refused | rest.refused).items()), "neutral:", *findings.neutral, *rest.neutral)
    print("not answered:", *findings.unanswered, *rest.unanswered)
    wrong = findings.wrong + rest.wrong
    assert not wrong, "\n".join(wrong[:50])
    assert COUNT < ALL or len(wanted) - len(findings.neutral + rest.neutral) >= REFUSED
    pairs = zip(("resident", "threads", "descriptors"), before, after, strict=True)
    print("from the first 1000 to the end:", *(f"{name} {was} to {now}," for name, was, now in pairs))
    assert after[0] - before[0] < GROWTH
    assert after[1] <= before[1] + 2
    assert after[2] <= before[2] + 4
