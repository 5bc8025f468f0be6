"""The agent on real kernels, in micro VMs: it boots, and every row of docs/kernel-abi.md gives its code."""

import errno
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kernel_rules
import pytest
from vm import machine
from vm.machine import Run
from vm.world import VmDeployment

from antechamber.simulator.deployment import scratch

pytestmark = [pytest.mark.vm, pytest.mark.root]
ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "kernel-abi.md").read_text()
KERNELS = ("6.12", "7")
CHOSEN = tuple(os.environ.get("ANTECHAMBER_VM_KERNELS", ",".join(KERNELS)).split(","))
STAGES = ["config", "preflight", "collateral", "identity", "challenge", "gpus", "measure", "release", "cap", "unlock"]
STAGES += ["ready"]
SLACK_S = 6.0  # over the guest's deadline: two graces of a second, and an emulated processor


@dataclass(frozen=True)
class Row:
    """One line of a table, on one kernel."""

    name: str
    code: str
    errno: str
    kernel: str
    status: int


def rows(title: str) -> list[Row]:
    """The table below a heading."""
    section = DOCUMENT.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    found = []
    for cells in lines[2:]:
        code, number = re.fullmatch(r"`([a-z.-]+)`(?: (E[A-Z]+))?", cells[2]).groups()
        status = int(cells[3]) if cells[3].isdecimal() else 0
        found += [Row(cells[0], code, number or "", kernel, status) for kernel in cells[4].split(", ")]
    return [row for row in found if row.kernel in CHOSEN]


FAULTS, BOOTS = rows("Faults"), rows("Whole boots")


@dataclass(frozen=True)
class Outside:
    """What each kernel's VM said, and what the world outside saw of it."""

    runs: dict[str, Future[Run]]
    decisions: list[dict[str, Any]]
    asked: list[str]  # connections that came from the kernel which must not make any


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    """Both kernels at once, each on one processor."""
    images = Path(os.environ["ANTECHAMBER_VM"])
    deployment = VmDeployment(scratch())
    asked: list[str] = []
    try:
        model_hash = deployment.make_model()
        deployment.make_broker()
        deployment.write_config(model_hash)
        deployment.start_broker()
        files = deployment.files()
        with nobody(asked) as silent, ThreadPoolExecutor() as pool:
            ports = {"7": deployment.broker_port, "6.12": silent}
            runs = {k: pool.submit(machine.run, images, k, files, ports[k]) for k in CHOSEN}
        yield Outside(runs, deployment.decisions(), asked)
    finally:
        deployment.stop()
        shutil.rmtree(deployment.root, ignore_errors=True)


@contextmanager
def nobody(asked: list[str]) -> Iterator[int]:
    """A port at which whoever connects is noted."""

    def note() -> None:
        while True:
            try:
                connection, address = server.accept()
            except OSError:
                return
            asked.append(str(address))
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=note, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_tables_and_guest_name_the_same_faults(outside: Outside) -> None:
    for kernel, run in outside.runs.items():
        assert set(run.result().faults) == {row.name for row in FAULTS if row.kernel == kernel}
        assert {r["boot"] for r in run.result().records if "boot" in r} == {
            row.name for row in BOOTS if row.kernel == kernel
        }


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: f"{row.name}-{row.kernel}")
def test_fault_gives_its_documented_code(outside: Outside, row: Row) -> None:
    seen = outside.runs[row.kernel].result().faults[row.name]
    assert seen["code"] == row.code, seen
    if row.errno:
        assert row.errno in seen["detail"] or os.strerror(getattr(errno, row.errno)) in seen["detail"]
    assert seen["seconds"] < 4.0 + SLACK_S
    if row.name != "quote-stuck":  # the kernel still holds it
        assert seen["left"] == []


@pytest.mark.parametrize("row", BOOTS, ids=lambda row: f"{row.name}-{row.kernel}")
def test_boot_ends_as_documented(outside: Outside, row: Row) -> None:
    seen = outside.runs[row.kernel].result().boot(row.name)
    refused = [r["code"] for r in seen["records"] if r["event"] == "refused"]
    assert (refused or ["ok"], seen["status"]) == ([row.code], row.status)


@pytest.mark.parametrize("kernel", CHOSEN)
def test_kernel_keeps_the_rules_that_the_look_alike_has(outside: Outside, kernel: str) -> None:
    absent = {} if kernel == "7" else kernel_rules.NO_REGISTERS
    assert outside.runs[kernel].result().one("rules") == kernel_rules.RULES | absent


@pytest.mark.skipif("7" not in CHOSEN, reason="[vm] another kernel was asked for")
def test_new_kernel_is_proven_and_gets_its_keys(outside: Outside) -> None:
    run = outside.runs["7"].result()
    records = run.boot("boot")["records"]
    assert [r["stage"] for r in records if r["event"] == "stage.end"] == STAGES
    facts = run.one("facts")
    assert (facts["simulator"], facts["rtmr_sysfs"], facts["tdx_guest"], facts["ccel"]) == (False, True, True, 65536)
    decided = [(d["decision"], d["code"]) for d in outside.decisions]
    assert [decision for decision, _ in decided] == [
        "stored",
        "attested",
        "certified",
        "released",
    ]  # of all three boots


@pytest.mark.skipif("6.12" not in CHOSEN, reason="[vm] another kernel was asked for")
def test_old_kernel_asks_the_broker_nothing(outside: Outside) -> None:
    run = outside.runs["6.12"].result()
    assert run.one("facts")["rtmr_sysfs"] is False
    records = run.boot("boot")["records"]
    assert [r["stage"] for r in records if r["event"] == "stage.end"] == ["config"]
    assert outside.asked == []
