"""The conformance kit, in both roles: our broker asked every scenario, our agent run against a double of Trustee."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from boots import World, world
from brokers import KEY, MODEL_KEY, Clock, Rig, rule, running
from brokers import serving as serving_broker
from interop.client_role import CLIENT, Client, plugins
from interop.kit import report
from interop.kit.__main__ import admin_tokens, main, parser
from interop.kit.attesters import Simulated
from interop.kit.catalog import CATALOG
from interop.kit.core import SERVER, Options, Verdict, deviations, run
from interop.kit.wire import Answer, Wire
from interop.trustee import authority, serving
from interop.trustee_double import Double, Knobs

from antechamber.simulator.deployment import scratch
from antechamber.simulator.fleet import MODEL_HASH, found_broker
from antechamber.simulator.knobs import Knobs as MachineKnobs
from antechamber.simulator.machine import Machine
from antechamber.simulator.state import State

pytestmark = [
    pytest.mark.filterwarnings("ignore:EdDSA is deprecated"),
    pytest.mark.filterwarnings("ignore:JWE algorithm"),  # RSA1_5, which the kit asks for
]
ROOT = Path(__file__).resolve().parents[2]


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


@pytest.fixture(scope="module")
def here() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.mark.parametrize("scenario", CLIENT)
def test_our_agent_does_what_the_protocol_says_against_trustees_double(
    here: World, tmp_path: Path, scenario: str
) -> None:
    signer, ca = authority()
    double = Double(Knobs(), signer, ca, {MODEL_KEY: KEY}, plugins(here))
    with serving(double, tmp_path) as url:
        CLIENT[scenario](Client(double, url, tmp_path, here))


def test_table_prints_nothing_of_a_servers_that_a_terminal_would_obey() -> None:
    hostile = Answer(401, (), json.dumps({"type": "t", "detail": "\x1b[2Jgone"}).encode())
    table = report.table([Verdict("auth.ok", "1.1", "a title", "fail", str(hostile))])
    assert "\x1b" not in table
    assert "?[2Jgone" in table


def test_every_scenario_is_asked_in_one_role_at_least() -> None:
    assert set(CATALOG) - {*SERVER, *CLIENT} == set()


def test_deviations_are_the_ones_of_the_documentation() -> None:
    assert report.markdown() in (ROOT / "docs" / "kbs.md").read_text(), "scripts/interop --deviations"
    ids = [d.id for d in deviations()]
    assert len(ids) == len(set(ids))


def test_command_says_it_in_a_table_and_in_json(rig: tuple[Rig, Clock], capsys: pytest.CaptureFixture[str]) -> None:
    broker = rig[0]
    asked = [
        "--url",
        broker.url,
        "--ca",
        str(broker.directory / "broker-ca.pem"),
        "--only",
        "version",
        "--only",
        "health",
    ]
    assert main(asked) == 1  # a session for `sample`, which we do not serve
    printed = capsys.readouterr().out
    assert "pass  1.1      version.mismatch" in printed
    assert printed.endswith("2 pass, 1 fail, 0 deviation, 0 not-applicable\n")
    assert main([*asked, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert {v["id"]: v["outcome"] for v in said["verdicts"]} == {
        "version.exact": "fail", "version.mismatch": "pass", "health": "pass",
    }  # fmt: skip


def test_command_that_could_ask_nothing_does_not_end_well(
    rig: tuple[Rig, Clock], capsys: pytest.CaptureFixture[str]
) -> None:
    broker = rig[0]
    asked = ["--url", broker.url, "--ca", str(broker.directory / "broker-ca.pem"), "--only", "admin.policy-ids"]
    with pytest.raises(SystemExit) as ended:
        main(asked)
    assert ended.value.code == 2
    assert "give --admin-key" in capsys.readouterr().out


def test_command_asks_a_broker_of_the_simulators_vendors_everything_that_needs_no_waiting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a shell would: everything comes from files and arguments."""
    state = tmp_path / "state"
    machine = State.open(state).machine(MachineKnobs())
    resources = {MODEL_KEY: rule("boot"), "default/any/1": rule("any"), "default/kit/1": rule("any")}
    directory = tmp_path / "broker"
    found_broker(directory, machine.intel, machine.nvidia, resources)
    with serving_broker(directory, machine.intel, machine.nvidia) as broker:
        for path in (MODEL_KEY, "default/any/1"):
            broker.broker.store.put(path, KEY)
        given = {
            "url": broker.url, "ca": directory / "broker-ca.pem", "profile": "antechamber", "attester": "simulator",
            "simulator-state": state, "event": f"model={MODEL_HASH}", "boot-resource": MODEL_KEY,
            "denied": "default/none/1", "missing": "default/kit/1", "token-ca": directory / "token-ca.pem",
            "admin-key": directory / "admin.key",
        }  # fmt: skip
        code = main([*(w for name, value in given.items() for w in (f"--{name}", str(value))), "--throwaway", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == 0, [v for v in said["verdicts"] if v["outcome"] == "fail"]
    waited = {v["id"] for v in said["verdicts"] if v["outcome"] == "not-applicable"}
    assert waited == {"token.expired", "session.expired"}


@pytest.mark.userns
@pytest.mark.fuse
@pytest.mark.cc
def test_command_attests_the_td_that_it_runs_in(tmp_path: Path) -> None:
    """On the simulated kernel interfaces, at their real paths. No agent has measured anything there yet."""
    state = scratch() / "state"
    machine = State.open(state).machine(MachineKnobs())
    directory = tmp_path / "broker"
    found_broker(directory, machine.intel, machine.nvidia, {"default/any/1": rule("any")})
    with serving_broker(directory, machine.intel, machine.nvidia) as broker:
        ca, signer = directory / "broker-ca.pem", directory / "token-ca.pem"
        kit = [sys.executable, "-m", "interop.kit", "--url", broker.url, "--ca", str(ca), "--attester", "tdx", "--json"]
        kit += ["--profile", "antechamber", "--token-ca", str(signer)]
        for family in (
            "attest.answer",
            "attest.binding",
            "attest.retry",
            "token.verify",
            "token.tee-pubkey",
            "token.ear",
        ):
            kit += ["--only", family]
        command = [sys.executable, "-m", "antechamber.simulator", "--state", str(state), "exec", "--", *kit]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        shutil.rmtree(state.parent)
        decisions = {r.decision for r in broker.broker.audit.records()}
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads(ran.stdout)["counts"] == {"pass": 5, "deviation": 1}
    assert decisions == {"attested", "refused"}


DOCUMENTS = [path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("command", re.findall(r"^scripts/interop (.*)$", "\n".join(DOCUMENTS), re.M))
def test_command_of_the_documentation_parses(command: str) -> None:
    parser().parse_args(shlex.split(command.partition(" > ")[0].partition(" #")[0]))
