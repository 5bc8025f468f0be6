"""Configuration: antechamber.yaml, init-data (TOML), broker.yaml. The first byte says which."""

import dataclasses
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import yaml
from fuzz.contract import VECTORS, Target
from fuzz.mutation import Mutator

from antechamber import strict
from antechamber.boot.settings import merge
from antechamber.broker.settings import BrokerSettings
from antechamber.config import Config
from antechamber.engine import catalog
from antechamber.errors import ConfigError
from antechamber.evidence import initdata

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "antechamber.yaml"
CONFIG = strict.load_yaml(EXAMPLE.read_bytes(), Config, error=ConfigError, family="config")


def run(data: bytes) -> None:
    kind, raw = (data[0] % 3, data[1:]) if data else (0, b"")
    (_config, _init_data, _broker)[kind](raw)


def _config(raw: bytes) -> None:
    config = strict.load_yaml(raw, Config, error=ConfigError, family="config")
    assert _again(config, Config, "config") == config, "a configuration, written again, is another"
    assert config.gateway.tls_inside_enclave is True
    config.trust.anchors()
    catalog.permitted(config.engine.kind, config.engine.options)


def _init_data(raw: bytes) -> None:
    parsed = initdata.parse(raw)
    assert parsed.digest == hashlib.new(parsed.algorithm, raw).digest()
    assert len(parsed.mr_config_id) == 48
    assert initdata.require_bound(raw, parsed.mr_config_id) == parsed
    assert parsed.tls_inside_enclave in (None, True)
    changed = merge(CONFIG, parsed)
    assert (changed.trust, changed.guest, changed.gpus) == (CONFIG.trust, CONFIG.guest, CONFIG.gpus), "the host set it"


def _broker(raw: bytes) -> None:
    settings = strict.load_yaml(raw, BrokerSettings, error=ConfigError, family="broker")
    assert _again(settings, BrokerSettings, "broker") == settings


def _again(value: Any, kind: type, family: str) -> Any:
    written = {k: v for k, v in json.loads(json.dumps(dataclasses.asdict(value))).items() if v is not None}
    return strict.load_yaml(yaml.safe_dump(written).encode(), kind, error=ConfigError, family=family)


FULL = """version = "0.1.0"
algorithm = "sha384"
[data]
"aa.toml" = "x"
"antechamber.toml" = '''
MODEL_HASH = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
TLS_INSIDE_ENCLAVE = true
MODEL_SOURCE = "/run/model"
MODEL_KEY = "kbs:///default/key/model"
MODEL_NAME = "tiny"
BROKER_URL = "https://broker.example:8080"
NAMES = ["a.example", "b.example"]
'''
"""
BROKER = """version: 1
listen: 127.0.0.1:8080
tls: {certificate: server.pem, key: server.key}
policy: policy.yaml
collateral: collateral
collateral_key: collateral-signer.key
master_key: master.key
database: broker.sqlite
tokens: {certificate: token.pem, key: token.key, ca: token-ca.pem}
guests: {certificate: guest-ca.pem, key: guest-ca.key}
admin: {public_key: admin.pub.pem}
session_minutes: 5
"""


def seeds() -> list[bytes]:
    config = yaml.safe_load(EXAMPLE.read_text())
    return [
        b"\0" + EXAMPLE.read_bytes(),
        b"\0" + json.dumps(config).encode(),
        b"\1" + FULL.encode(),
        b"\1" + FULL.replace("sha384", "sha512", 1).replace("true", "false").encode(),
        b'\1version = "0.1.0"\nalgorithm = "sha256"\n[data]\n',
        b"\2" + BROKER.encode(),
    ]


def vectors() -> list[bytes]:
    path = VECTORS / "kbs" / "initdata.json"
    return [b"\1" + one["toml"].encode() for one in json.loads(path.read_text())] if path.is_file() else []


def mutate(m: Mutator, data: bytes) -> bytes:
    if data[0] % 3 != 1:
        changed = m.json(yaml.safe_load(data[1:]))
        text = json.dumps(changed) if m.often(0.3) else yaml.safe_dump(changed, allow_unicode=m.often())
        return data[:1] + text.encode("utf-8", "replace")
    value = tomllib.loads(data[1:].decode())
    if m.often() and isinstance(inner := value.get("data", {}).get("antechamber.toml"), str):
        value["data"]["antechamber.toml"] = toml(m.json(tomllib.loads(inner)))
    else:
        value = m.json(value)
    return data[:1] + toml(value).encode("utf-8", "replace")


def toml(table: dict[str, Any], at: str = "") -> str:
    """TOML of a table; what TOML has no form for comes out as something else."""
    lines = [f"{json.dumps(k)} = {_value(v)}" for k, v in table.items() if not isinstance(v, dict)]
    for key, item in table.items():
        if isinstance(item, dict):
            name = f"{at}.{json.dumps(key)}".lstrip(".")
            lines += [f"[{name}]", toml(item, name)]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value) if value is not None else "nan"


WORDS = (
    "version", "runtime_dir", "trust", "intel", "nvidia", "collateral_signer", "time_floor", "broker", "url", "ca",
    "timeout_s", "guest", "cmdline", "kernel", "gpus", "count", "model", "hash", "source", "key", "name", "engine",
    "kind", "builtin", "vllm", "image", "options", "precision", "start_timeout_s", "user", "gateway", "listen",
    "names", "tls_inside_enclave", "max_body_bytes", "max_connections", "verdict_age_s", "nonces_per_minute",
    "client_share", "watch", "interval_s", "grace_s", "init_data", "file", "https://[", "https://h:99999", "kbs:///",
    "sha256:", "algorithm", "data", "antechamber.toml", "MODEL_HASH", "MODEL_SOURCE", "MODEL_KEY", "MODEL_NAME",
    "BROKER_URL", "NAMES", "TLS_INSIDE_ENCLAVE", "sha384", "sha512", "'''", '"""', "[[", "]]", "[data]",
    "inf", "nan", "0x", "1e400", "1979-05-27T07:32:00Z", "session_minutes", "tokens", "admin", "public_key", "&a ",
    "*a", "<<: ",
)  # fmt: skip
TARGET = Target(
    name="config", run=run, seeds=seeds, mutate=mutate, words=WORDS, max_len=1 << 14, vectors=vectors
)  # fmt: skip
