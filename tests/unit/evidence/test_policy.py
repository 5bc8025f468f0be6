"""A policy accepts nothing by omission."""

import base64
import copy
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from antechamber.errors import ConfigError
from antechamber.evidence.policy import load_policy

POLICY: dict[str, Any] = {
    "version": 1,
    "anchors": {"intel": "intel", "nvidia": "nvidia"},
    "collateral": {
        "signer": base64.b64encode(bytes(32)).decode(),
        "max_age_s": 3600,
        "max_issue_age_s": 604800,
        "min_tcb_eval": 17,
    },
    "tdx": {
        "mr_td": ["11" * 48],
        "rtmr0": "unpinned",
        "rtmr1": ["22" * 48],
        "rtmr2": ["33" * 48],
        "mr_config_id": "zero",
        "mr_owner": "zero",
        "mr_owner_config": "zero",
        "mr_seam": "unpinned",
        "td_attributes": ["0000001000000000"],
        "xfam": ["e702060000000000"],
        "tcb_status": ["UpToDate"],
        "advisories": [],
    },
    "events": {
        "config": ["sha384:" + "44" * 48],
        "init-data": "unpinned",
        "engine": ["sha384:" + "55" * 48],
        "model": ["sha256:" + "66" * 32],
        "gpu": "unpinned",
    },
    "gpu": {
        "count": 1,
        "arch": ["HOPPER"],
        "modes": ["spt"],
        "driver_min": "570.124.06",
        "vbios": "unpinned",
        "measurements": "not-appraised",
        "revocation": "not-appraised",
    },
    "attestation_result": "not-appraised",
}


def code_of(document: object) -> str:
    with pytest.raises(ConfigError) as refused:
        load_policy(yaml.safe_dump(document))
    return refused.value.code


def test_policy_loads_when_it_is_complete() -> None:
    assert load_policy(yaml.safe_dump(POLICY)).tdx.mr_td == ("11" * 48,)


GOOD = yaml.safe_dump(POLICY).encode()
UNPARSABLE = {
    "empty": (b"", "policy.type"),
    "comment alone": (b"# nothing\n", "policy.type"),
    "empty mapping": (b"{}", "policy.missing"),
    "null": (b"null", "policy.type"),
    "list": (b"[]", "policy.type"),
    "text": (b"allow", "policy.type"),
    "version alone": (b"version: 1", "policy.missing"),
    "NUL": (b"\0", "policy.syntax"),
    "not UTF-8": (GOOD + b"# \xff\n", "policy.syntax"),
    "two documents": (GOOD + b"---\n" + GOOD, "policy.syntax"),
    "key twice": (GOOD + b"version: 1\n", "policy.duplicate"),
    "key twice inside": (b"tdx: {xfam: [], xfam: []}\n", "policy.duplicate"),
    "unknown key": (GOOD + b"accept: all\n", "policy.unknown"),
    "alias": (b"a: &a {}\nb: *a\n", "policy.syntax"),
    "merge key": (b"<<: {version: 1}\n", "policy.syntax"),
    "tag": (b"version: !!int 1\n", "policy.syntax"),
    "other version": (GOOD.replace(b"version: 1", b"version: 2"), "policy.value"),
    "version as truth value": (GOOD.replace(b"version: 1", b"version: true"), "policy.value"),
}


@pytest.mark.parametrize("case", UNPARSABLE)
def test_policy_refuses_when_it_is_empty_or_does_not_parse(case: str) -> None:
    raw, code = UNPARSABLE[case]
    with pytest.raises(ConfigError) as refused:
        load_policy(raw)
    assert refused.value.code == code


def _keys() -> list[tuple[str, ...]]:
    inner = [(k, i) for k, v in POLICY.items() if isinstance(v, dict) for i in v]
    return [(k,) for k in POLICY] + inner


@pytest.mark.parametrize("path", _keys(), ids=".".join)
def test_policy_refuses_when_a_key_is_missing(path: tuple[str, ...]) -> None:
    document = copy.deepcopy(POLICY)
    target = document
    for key in path[:-1]:
        target = target[key]
    del target[path[-1]]
    assert code_of(document) in ("policy.missing", "policy.value")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("tdx", "mr_td", []),
        ("tdx", "mr_td", "unpinned"),
        ("tdx", "mr_td", "zero"),
        ("tdx", "mr_td", ["AA" * 48]),
        ("tdx", "mr_td", ["11" * 47]),
        ("tdx", "mr_config_id", "unpinned"),
        ("tdx", "td_attributes", []),
        ("tdx", "xfam", ["00"]),
        ("tdx", "tcb_status", []),
        ("tdx", "tcb_status", ["Revoked"]),
        ("events", "config", "zero"),
        ("events", "config", []),
        ("events", "model", "unpinned"),
        ("events", "model", ["sha256:0"]),
        ("events", "another", "unpinned"),
        ("collateral", "signer", "AAAA"),
        ("collateral", "max_age_s", 0),
        ("collateral", "max_issue_age_s", 0),
        ("collateral", "max_issue_age_s", 31 * 86400),
        ("collateral", "min_tcb_eval", 0),
        ("gpu", "count", 0),
        ("gpu", "modes", []),
        ("gpu", "modes", ["devtools"]),
        ("gpu", "driver_min", "new"),
        ("gpu", "measurements", "appraised"),
        ("gpu", "revocation", True),
        ("anchors", "intel", "none"),
    ],
)
def test_policy_refuses_when_a_value_would_accept_too_much_or_nothing(section: str, key: str, value: object) -> None:
    document = copy.deepcopy(POLICY)
    document[section][key] = value
    assert code_of(document) in ("policy.value", "policy.type")


@pytest.mark.parametrize("value", [None, "", "appraised", True, [], {}, {"ca": ""}, {"ca": None}])
def test_policy_refuses_when_the_attestation_result_is_accepted_in_no_words(value: object) -> None:
    assert code_of(POLICY | {"attestation_result": value}).startswith("policy.")


@given(st.binary(max_size=300))
def test_policy_loads_or_refuses_any_bytes(raw: bytes) -> None:
    with suppress(ConfigError):
        load_policy(raw)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["unpinned", "zero", "intel"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(_keys()), VALUES)
def test_policy_with_any_value_in_any_place_loads_or_refuses(path: tuple[str, ...], value: object) -> None:
    """And what loads pins the firmware and the model, and demands a list of statuses."""
    document = copy.deepcopy(POLICY)
    target = document
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with suppress(ConfigError):
        policy = load_policy(yaml.safe_dump(document))
        assert all(len(pin) == 96 for pin in policy.tdx.mr_td)
        assert policy.tdx.mr_td
        assert policy.tdx.tcb_status
        assert isinstance(policy.events["model"], tuple)
        assert policy.gpu.measurements == policy.gpu.revocation == "not-appraised"
