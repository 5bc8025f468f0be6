"""One module a parser."""

import importlib

from fuzz.contract import Target

NAMES = ("quote", "eventlog", "messages", "jwe", "token", "policy", "config", "package", "collateral", "gpu", "bundle",
         "gateway", "engine", "certificate")  # fmt: skip


def load(name: str) -> Target:
    target: Target = importlib.import_module(f"fuzz.targets.{name}").TARGET
    return target
