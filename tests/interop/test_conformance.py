"""The conformance kit, in both roles: our broker asked every scenario, our agent run against a double of Trustee."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from brokers import MODEL_HASH, MODEL_KEY, Rig, rule, running
from interop.kit.__main__ import admin_tokens, parser
from interop.kit.attesters import Simulated
from interop.kit.core import SERVER, Options, Verdict, deviations, run
from interop.kit.wire import Wire

from antechamber.simulator.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated")


@dataclass
class Clock:
    """The broker's clock, that a scenario may put forward."""

    ahead: int = 0

    def __call__(self) -> int:
        return int(time.time()) + self.ahead

    def wait(self, seconds: int) -> None:
        self.ahead += seconds


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Clock]]:
    clock = Clock()
    with running(tmp_path_factory.mktemp("broker"), clock=clock) as rig:
        rules = {path: rule("any") for path in ("default/any/1", "default/kit/1")}
        rig.rewrite(resources=rules | {MODEL_KEY: rule("boot")})
        yield rig, clock


def ask(rig: Rig, clock: Clock, scenario: str, profile: str) -> Verdict:
    clock.ahead = 0
    key = str(rig.directory / "admin.key")
    options = Options(
        boot_resource=MODEL_KEY,
        denied="default/unruled/1",
        missing="default/kit/1",
        token_ca=(rig.directory / "token-ca.pem").read_bytes(),
        admin_token=admin_tokens(parser().parse_args(["--admin-key", key])),
        throwaway=True,
        wait=clock.wait,
    )
    wire = Wire(rig.url, str(rig.directory / "broker-ca.pem"))
    return run(
        scenario, wire, lambda: Simulated(Machine(rig.intel, rig.nvidia), {"model": MODEL_HASH}), options, profile
    )


@pytest.mark.parametrize("scenario", SERVER)
def test_our_broker_does_what_the_protocol_and_the_list_of_deviations_say(
    rig: tuple[Rig, Clock], scenario: str
) -> None:
    verdict = ask(*rig, scenario, "antechamber")
    assert verdict.outcome in ("pass", "deviation"), verdict


LISTED = {d.scenario for d in deviations() if d.role == "server" and d.scenario}


@pytest.mark.parametrize("scenario", sorted(LISTED))
def test_each_deviation_is_one_under_trustees_profile(rig: tuple[Rig, Clock], scenario: str) -> None:
    assert ask(*rig, scenario, "trustee").outcome == "fail"
