import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from brokers import policy
from hypothesis import given
from hypothesis import strategies as st

from antechamber.broker.rules import RulesFile, load_rules
from antechamber.errors import AgentError, ConfigError
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.nvidia import NvidiaPki

INTEL, NVIDIA = IntelPki(), NvidiaPki()
POLICY = policy(INTEL, NVIDIA, "A" * 43 + "=")
RULES: dict[str, Any] = {
    "version": 1,
    "anchors": {"intel": INTEL.root_pem, "nvidia": NVIDIA.root_pem},
    "policies": {"demo": POLICY},
    "resources": {"a/b/c": {"policy": "demo", "phase": "boot"}},
}


def text(**changes: Any) -> bytes:
    return yaml.safe_dump(RULES | changes).encode()


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(AgentError) as refused:
        call()
    assert isinstance(refused.value, ConfigError)
    return refused.value.code


def test_rules_load() -> None:
    loaded = load_rules(text())
    assert loaded.rules.resources["a/b/c"].phase == "boot"
    assert loaded.digest.startswith("sha256:")
    assert loaded.rules.certificates is None


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"resources": {"a/b/c": {"policy": "other", "phase": "boot"}}}, "rules.value"),
        ({"resources": {"../b/c": {"policy": "demo", "phase": "boot"}}}, "rules.value"),
        ({"resources": {"a/b/c": {"policy": "demo"}}}, "rules.missing"),
        ({"resources": {"a/b/c": {"policy": "demo", "phase": "always"}}}, "rules.value"),
        ({"anchors": {"intel": "intel", "nvidia": "nvidia"}}, "rules.value"),
        ({"certificates": {"policy": "demo", "names": []}}, "rules.value"),
        ({"certificates": {"policy": "demo", "names": ["a b"]}}, "rules.value"),
        ({"lease": {"policy": "other"}}, "rules.value"),
        ({"version": 2}, "rules.value"),
        ({"default": "allow"}, "rules.unknown"),
        ({"policies": {"demo": {}}}, "rules.missing"),
    ],
)
def test_rules_refuse(change: dict[str, Any], code: str) -> None:
    assert code_of(lambda: load_rules(text(**change))) == code


@pytest.mark.parametrize("empty", [b"", b"{}", b"[]", b"version: 1", b": :"])
def test_empty_rules_refuse(empty: bytes) -> None:
    assert code_of(lambda: load_rules(empty)).startswith("rules.")


def test_rules_file_follows_the_file_and_refuses_while_it_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    rules = RulesFile(str(path))
    assert code_of(rules.current) == "rules.file"
    path.write_bytes(text())
    first = rules.current()
    assert rules.current() is first
    path.write_bytes(b"")
    assert code_of(rules.current) == "rules.type"
    assert code_of(rules.current) == "rules.type"
    path.write_bytes(text(resources={}))
    assert rules.current().rules.resources == {}
    os.unlink(path)
    assert code_of(rules.current) == "rules.file"


@given(st.binary(max_size=200))
def test_rules_load_or_refuse_any_bytes(raw: bytes) -> None:
    with suppress(ConfigError):
        load_rules(raw)
