"""One complete configuration, as tests need it."""

import base64
from typing import Any

import yaml


def document(**changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "runtime_dir": "/run/antechamber",
        "trust": {
            "intel": "intel",
            "nvidia": "nvidia",
            "collateral_signer": base64.b64encode(bytes(32)).decode(),
            "time_floor": "2026-11-01T00:00:00Z",
        },
        "broker": {"url": "https://kbs.example.org", "ca": "/etc/antechamber/broker-ca.pem"},
        "guest": {"cmdline": "ro roothash={roothash}"},
        "gpus": {"count": 1},
        "model": {"hash": "sha256:" + "0" * 64, "source": "/model", "key": "kbs:///a/b/c", "name": "m"},
        "engine": {"kind": "builtin"},
        "gateway": {"listen": "0.0.0.0:8443", "names": ["llm.example.org"], "tls_inside_enclave": True},
    } | changes


def text(**changes: Any) -> str:
    return yaml.safe_dump(document(**changes))
