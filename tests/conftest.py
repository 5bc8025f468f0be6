"""Marks to skips: a test that needs what this machine lacks says so; CI refuses a skip it could have avoided."""

import ctypes.util
import functools
import importlib.util
import os
import shutil

import hypothesis
import pytest

# Time is no property: a loaded machine fails no test by being slow. What must end in time says so itself.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

MARKS = ("root", "fuse", "userns", "netns", "cc", "curl", "openssl", "rego", "torch", "tdx", "gpu", "vm")


@functools.cache
def _capabilities():
    from antechamber.simulator.namespace import capabilities

    return capabilities()


@functools.cache
def _no_network() -> str:
    from antechamber.simulator.capabilities import why_no_network

    return why_no_network()


def _lacks(mark: str) -> str:
    if mark == "root":
        return "" if os.geteuid() == 0 else "needs root"
    if mark == "netns":
        return _no_network()
    if mark in ("fuse", "userns", "cc"):
        return "" if getattr(_capabilities(), mark) else _capabilities().reasons[mark]
    if mark in ("curl", "openssl"):
        return "" if shutil.which(mark) else f"needs the {mark} command"
    if mark == "rego":
        return "" if ctypes.util.find_library("atomic") else "needs libatomic (Debian, Ubuntu: apt install libatomic1)"
    if mark == "torch":
        found = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")
        return "" if found else "needs torch and transformers"
    if mark == "vm":
        return _lacks("root") or ("" if "ANTECHAMBER_VM" in os.environ else "needs the images that scripts/vm builds")
    if mark in ("tdx", "gpu"):
        return (
            "" if os.path.exists({"tdx": "/dev/tdx_guest", "gpu": "/dev/nvidiactl"}[mark]) else f"needs {mark} hardware"
        )
    return ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--allow-skips",
        metavar="MARKS",
        help="comma-separated marks whose tests may be skipped; any other skip is a failure (CI)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers():
            if mark.name in MARKS and (reason := _lacks(mark.name)):
                item.add_marker(pytest.mark.skip(reason=f"[{mark.name}] {reason}"))


_unexpected: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _unexpected.append(f"{report.nodeid}: {report.longrepr[2] if isinstance(report.longrepr, tuple) else ''}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    allowed = session.config.getoption("--allow-skips")
    if allowed is None:
        return
    words = [f"[{mark}]" for mark in allowed.split(",") if mark]
    refused = [line for line in _unexpected if not any(word in line for word in words)]
    if refused:
        print("\nskipped, but this run requires them:\n" + "\n".join(refused))
        session.exitstatus = 1
