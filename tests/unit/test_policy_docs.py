"""docs/policy.md stays true: it has every key, its commands run, and its examples parse."""

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from brokers import Rig, running
from unit.client.guest import Guest as Server

from antechamber import cli, config
from antechamber.broker.messages import Attestation
from antechamber.broker.rules import GuestLimit, ReleaseLimit, ResourceRule, Rules
from antechamber.cli.parser import build_parser
from antechamber.evidence.policy import PINNED_EVENTS, Policy

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "policy.md").read_text()
COMMANDS = re.findall(r"^(antechamber .*)$", "\n".join(re.findall(r"```\n(.*?)```", TEXT, re.S)), re.M)
KEYS = re.findall(r"`([a-z0-9._<>/-]+)`", "\n".join(re.findall(r"^\| (`[^|]*) \|", TEXT, re.M)))


def _keys(kind: type, at: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        inner = [k for k in (hint, *get_args(hint)) if dataclasses.is_dataclass(k)]
        if inner and name not in ("attestation_result", "releases", "at_once"):
            yield from _keys(inner[0], f"{at}{name}.")
        else:
            yield f"{at}{name}"


@pytest.mark.parametrize("key", [k for k in _keys(Policy) if k != "events"] + [f"events.{e}" for e in PINNED_EVENTS])
def test_every_key_of_a_policy_is_described(key: str) -> None:
    assert key in KEYS or f".{key.partition('.')[2]}" in KEYS, key


@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(ResourceRule)])
def test_every_key_of_a_rule_is_described(key: str) -> None:
    assert f".{key}" in KEYS


def test_every_key_of_the_rules_and_of_a_limit_is_described() -> None:
    for field in dataclasses.fields(Rules):
        assert any(k.partition(".")[0] == field.name for k in KEYS), field.name
    for limit in (ReleaseLimit, GuestLimit):
        for field in dataclasses.fields(limit):
            assert re.search(rf"\{{[^}}]*\b{field.name}: \d", TEXT), field.name


def test_link_of_the_page_leads_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / link).exists(), link
    for path in re.findall(r"`(tests/[a-z_/.]+)`", TEXT):
        assert (ROOT / path).exists(), path


def test_example_has_every_limit() -> None:
    rules = yaml.safe_load((ROOT / "docs" / "examples" / "broker-policy.yaml").read_text())
    (rule,) = rules["resources"].values()
    assert set(rule) == {f.name for f in dataclasses.fields(ResourceRule)}
    assert "unlimited" not in rule.values()
    guest, _ = config.load(str(ROOT / "docs" / "examples" / "antechamber.yaml"))
    assert rule["at_once"]["lease_s"] >= guest.watch.grace_s  # or a guest serves that the broker counts as gone


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with everything that the commands name."""
    root = tmp_path_factory.mktemp("docs")
    with running(root / "broker") as rig:
        server = Server((root / "broker" / "server.pem").read_bytes())
        (root / "bundle.json").write_bytes(server.bundle("00" * 32)[0])
        (root / "policy.yaml").write_text(server.policy_text())
        (root / "body.json").write_bytes(_body(rig))
        (root / "host.json").write_text(json.dumps(rig.intel.collateral()))
        yield root


def _body(rig: Rig) -> bytes:
    guest, nonce = rig.guest(), "A" * 43 + "="
    return Attestation.of(nonce, guest.tee.public_jwk, guest.evidence(nonce), None).build()


STATUS = {  # where the place's files do not fit together: that is what the command is for
    "antechamber policy explain body.json --policy policy.yaml --collateral host.json": 77,
    "antechamber policy explain body.json --broker ./broker --at 2026-11-24T10:00:00Z --json": (0, 77),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_page_runs(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = shlex.split(command)[1:]
    build_parser().parse_args(words)
    status = cli.main(words)
    wanted = STATUS.get(command, 0)
    assert status in (wanted if isinstance(wanted, tuple) else (wanted,))
    assert capsys.readouterr().out
