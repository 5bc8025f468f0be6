import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from brokers import policy, rule
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
    "resources": {"a/b/c": rule("boot")},
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
        ({"resources": {"a/b/c": rule("boot", policy="other")}}, "rules.value"),
        ({"resources": {"../b/c": rule("boot")}}, "rules.value"),
        ({"resources": {"a/b/c": {"policy": "demo"}}}, "rules.missing"),
        ({"resources": {"a/b/c": rule("always")}}, "rules.value"),
        *(({"resources": {"a/b/c": {k: v for k, v in rule("any").items() if k != key}}}, "rules.missing")
          for key in rule("any")),
        ({"resources": {"a/b/c": rule("boot", until=None)}}, "rules.type"),
        *(({"resources": {"a/b/c": rule("boot", until=until)}}, "rules.value")
          for until in ("", "never", "2027-01-01", "2027-01-01T00:00:00", "2027-01-01T00:00:00+01:00")),
        *(({"resources": {"a/b/c": rule("boot", releases=limit)}}, "rules.value")
          for limit in ("", "never", 1, None, True, {"max": 0, "per_s": 1}, {"max": 1, "per_s": 0},
                        {"max": 1, "per_s": 366 * 86400 + 1})),
        ({"resources": {"a/b/c": rule("boot", releases={"max": 1})}}, "rules.missing"),
        ({"resources": {"a/b/c": rule("boot", releases={"max": True, "per_s": 1})}}, "rules.type"),
        *(({"resources": {"a/b/c": rule("boot", at_once=limit)}}, "rules.value")
          for limit in ("", 1, None, {"max": 0, "boot_s": 1, "lease_s": 1}, {"max": 1, "boot_s": 0, "lease_s": 1},
                        {"max": 1, "boot_s": 1, "lease_s": 0}, {"max": 1, "boot_s": 1, "lease_s": 7 * 86400 + 1})),
        ({"resources": {"a/b/c": rule("boot", at_once={"max": 1, "boot_s": 1})}}, "rules.missing"),
        ({"resources": {"a/b/c": rule("boot", forever=True)}}, "rules.unknown"),
        ({"policies": {"demo": POLICY | {"attestation_result": {"ca": INTEL.root_pem}}}}, "rules.value"),
        ({"anchors": {"intel": "intel", "nvidia": "nvidia"}}, "rules.value"),
        ({"certificates": {"policy": "demo", "names": []}}, "rules.value"),
        ({"certificates": {"policy": "demo", "names": ["a b"]}}, "rules.value"),
        ({"lease": {"policy": "other"}}, "rules.value"),
        ({"version": 2}, "rules.value"),
        ({"default": "allow"}, "rules.unknown"),
        ({"policies": {"demo": {}}}, "rules.missing"),
    ],
)  # fmt: skip
def test_rules_refuse(change: dict[str, Any], code: str) -> None:
    assert code_of(lambda: load_rules(text(**change))) == code


UNPARSABLE = {
    "empty": (b"", "rules.type"),
    "spaces": (b" \n# nothing\n", "rules.type"),
    "empty mapping": (b"{}", "rules.missing"),
    "list": (b"[]", "rules.type"),
    "null": (b"null", "rules.type"),
    "text": (b"allow", "rules.type"),
    "true": (b"true", "rules.type"),
    "version alone": (b"version: 1", "rules.missing"),
    "no YAML": (b": :", "rules.syntax"),
    "not UTF-8": (text() + b"# \xff\n", "rules.syntax"),
    "two documents": (text() + b"---\n" + text(), "rules.syntax"),
    "key twice": (text() + b"version: 1\n", "rules.duplicate"),
    "unknown key": (text() + b"default: allow\n", "rules.unknown"),
    "alias": (b"a: &a {}\nb: *a\n", "rules.syntax"),
    "merge key": (b"<<: {version: 1}\n", "rules.syntax"),
    "tag": (b"!!python/object/apply:os.system [id]", "rules.syntax"),
    "other version": (text(version=2), "rules.value"),
    "version as text": (text(version="1"), "rules.value"),
    "too long": (text() + b"#" * (1 << 20), "rules.syntax"),
}


@pytest.mark.parametrize("case", UNPARSABLE)
def test_rules_that_are_empty_or_do_not_parse_refuse(case: str) -> None:
    raw, code = UNPARSABLE[case]
    assert code_of(lambda: load_rules(raw)) == code


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


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["unlimited", "any", "demo"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["max", "per_s"]), inner, max_size=2),
    max_leaves=3,
)


@given(st.sampled_from(sorted(rule("any"))), VALUES)
def test_rule_with_any_value_loads_or_refuses(key: str, value: object) -> None:
    """And what loads says every limit, in its own type or the one word."""
    with suppress(ConfigError):
        loaded = load_rules(text(resources={"a/b/c": rule("any") | {key: value}})).rules.resources["a/b/c"]
        assert loaded.until == "unlimited" or loaded.ends() is not None
        for limit in (loaded.releases, loaded.at_once):
            assert limit == "unlimited" or limit.max >= 1
