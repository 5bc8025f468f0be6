from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from unit.guest_config import document, text

from antechamber import config, strict
from antechamber.errors import ConfigError


def load(tmp_path: Path, **changes: Any) -> config.Config:
    path = tmp_path / "antechamber.yaml"
    path.write_text(text(**changes))
    return config.load(str(path))[0]


def test_load_gives_the_exact_bytes_that_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "antechamber.yaml"
    path.write_text("# comment\n" + text())
    cfg, raw = config.load(str(path))
    assert cfg.gpus.count == 1
    assert raw == path.read_bytes()


def _changed(section: str, **values: Any) -> dict[str, Any]:
    return {section: document()[section] | values}


@pytest.mark.parametrize(
    "changes",
    [
        _changed("broker", url="http://kbs.example.org"),
        _changed("broker", url="https://["),
        _changed("broker", url="https://kbs.example.org:port"),
        _changed("broker", url="https://"),
        _changed("broker", timeout_s=0),
        _changed("gateway", tls_inside_enclave=False),
        _changed("gateway", names=[]),
        _changed("gateway", names=["a b"]),
        _changed("gateway", listen="8443"),
        _changed("gateway", listen="127.0.0.1:99999"),
        _changed("model", hash="sha256:0"),
        _changed("model", hash="verity-sha256:" + "0" * 64),
        _changed("model", key="kbs:///a/../c"),
        _changed("model", name="--host"),
        _changed("model", source="model"),
        _changed("gpus", count=0),
        _changed("trust", intel="-----BEGIN nothing"),
        _changed("trust", time_floor="yesterday"),
        _changed("engine", kind="another"),
        {"watch": {"interval_s": 60, "grace_s": 10}},
        {"runtime_dir": "run"},
    ],
    ids=lambda c: str(c)[:60],
)
def test_load_refuses_when_a_value_is_out_of_range(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, **changes)
    assert refused.value.code == "config.value"


def test_load_refuses_when_what_trust_depends_on_is_missing(tmp_path: Path) -> None:
    for section in ("trust", "broker", "guest", "gpus", "model", "engine", "gateway"):
        for key in document()[section]:
            changed = {k: v for k, v in document()[section].items() if k != key}
            with pytest.raises(ConfigError) as refused:
                load(tmp_path, **{section: changed})
            assert refused.value.code == "config.missing", (section, key)


def test_load_refuses_when_the_file_is_absent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        config.load(str(tmp_path / "none.yaml"))
    assert refused.value.code == "config.file"
    assert refused.value.exit_status == 78


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.binary(max_size=200))
def test_config_parses_or_refuses_any_bytes(raw: bytes) -> None:
    with suppress(ConfigError):
        strict.load_yaml(raw, config.Config, error=ConfigError, family="config")


PLACES = [(section, key) for section, keys in document().items() if isinstance(keys, dict) for key in keys]


@given(st.sampled_from(PLACES), VALUES)
def test_config_parses_or_refuses_any_value(place: tuple[str, str], value: object) -> None:
    section, key = place
    changed = document(**{section: document().get(section, {}) | {key: value}})
    with suppress(ConfigError):
        strict.load_yaml(yaml.safe_dump(changed), config.Config, error=ConfigError, family="config")
