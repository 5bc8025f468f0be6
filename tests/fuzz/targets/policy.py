"""Appraisal Policies (first byte even) and the broker's rules (odd), from YAML."""

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml
from fuzz.contract import NOW, Target
from fuzz.mutation import Mutator

from antechamber.broker.rules import load_rules
from antechamber.errors import ConfigError
from antechamber.evidence.policy import load_policy
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.nvidia import NvidiaPki

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples"


def run(data: bytes) -> None:
    load = load_rules if data[:1] and data[0] % 2 else load_policy
    try:
        loaded = load(data[1:])
    except ConfigError as refused:
        assert refused.code.split(".")[0] in ("policy", "rules")
        raise
    again: Any = load(yaml.safe_dump(plain(loaded)).encode())
    if isinstance(loaded, type(again)) and hasattr(loaded, "rules"):
        assert again.rules == loaded.rules, "rules, written again, are others"
        require_whole(*loaded.rules.policies.values())
    else:
        assert again == loaded, "a policy, written again, is another"
        require_whole(loaded)


def require_whole(*policies: Any) -> None:
    """Nothing is accepted by omission."""
    for policy in policies:
        pins = {name: getattr(policy.tdx, name) for name in policy.tdx.__dataclass_fields__ if name != "advisories"}
        for name, pin in (*pins.items(), *policy.events.items()):
            assert pin and pin != ("",), f"{name} accepts by omission"


def plain(value: Any) -> Any:
    if hasattr(value, "rules"):
        value = value.rules
    return _without_none(json.loads(json.dumps(dataclasses.asdict(value))))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value


def seeds() -> list[bytes]:
    policy = yaml.safe_load((EXAMPLES / "policy.yaml").read_text())
    rules = yaml.safe_load((EXAMPLES / "broker-policy.yaml").read_text())
    ca = IntelPki(NOW, seed=bytes(32)).root_pem
    anchors = {"intel": ca, "nvidia": NvidiaPki(seed=bytes(32)).root_pem}
    signer = base64.b64encode(bytes(32)).decode()
    return [
        b"\0" + (EXAMPLES / "policy.yaml").read_bytes(),
        b"\1" + (EXAMPLES / "broker-policy.yaml").read_bytes(),
        b"\0" + yaml.safe_dump(policy | {"anchors": anchors, "attestation_result": {"ca": ca}}).encode(),
        b"\1" + yaml.safe_dump(rules, default_flow_style=True).encode(),
        b"\0" + json.dumps(policy | {"collateral": {"signer": signer, "max_age_s": 1, "min_tcb_eval": 1}}).encode(),
        b"\1version: 1\nanchors: {intel: intel, nvidia: nvidia}\npolicies: {}\nresources: {}\n",
        b"\0a: &a [1]\nb: *a\n",
        b"\0a: 1\na: 2\n",
        b"\0<<: {version: 1}\n",
        b"\0!!python/object/apply:os.system ['true']\n",
    ]


def mutate(m: Mutator, data: bytes) -> bytes:
    changed = m.json(yaml.safe_load(data[1:]))
    text = json.dumps(changed) if m.often(0.3) else yaml.safe_dump(changed, allow_unicode=m.often())
    return data[:1] + text.encode("utf-8", "replace")


WORDS = (
    "version", "anchors", "intel", "nvidia", "collateral", "signer", "max_age_s", "min_tcb_eval", "tdx", "mr_td",
    "rtmr0", "rtmr1", "rtmr2", "mr_config_id", "mr_owner", "mr_owner_config", "mr_seam", "td_attributes", "xfam",
    "tcb_status", "advisories", "events", "config", "init-data", "engine", "model", "gpu", "count", "arch", "modes",
    "driver_min", "vbios", "measurements", "revocation", "attestation_result", "not-appraised", "unpinned", "zero",
    "policies", "resources", "certificates", "names", "lease", "policy", "phase", "boot", "any", "UpToDate", "ca",
    "&a ", "*a", "<<: ", "!!int ", "!!binary ", "? ", "- ", ": ", "|\n", ">\n", "%YAML 1.1\n---\n", "---\n", "...\n",
    ".inf", ".nan", "0o7", "0x10", "1_000", "1:30", "2026-11-25", "yes", "~", "\\ud800", "\\U00110000", "#",
)  # fmt: skip
TARGET = Target(name="policy", run=run, seeds=seeds, mutate=mutate, words=WORDS, max_len=1 << 14)
