"""Production adapters on the simulated kernel: the same calls, the same paths, and nothing left afterwards."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kernel_rules
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from antechamber.evidence.anchors import Anchors, spki_sha256
from antechamber.evidence.composite import GpuEvidence
from antechamber.evidence.gpu_chain import verify_devices
from antechamber.simulator.standin import PIECES

dcap_qvl = pytest.importorskip("dcap_qvl")
real_abi = [pytest.mark.userns, pytest.mark.fuse, pytest.mark.cc]
NONCE, REPORT_DATA = bytes(range(32)), bytes(range(64))

# Runs inside, and prints one JSON object.
ADAPTERS = f"""
import dataclasses, json
from antechamber.cli import real_hardware
hw, nonce, data = real_hardware(), bytes.fromhex({NONCE.hex()!r}), bytes.fromhex({REPORT_DATA.hex()!r})
said = dict(facts=dataclasses.asdict(hw.host.facts()), memory=hw.host.in_memory("/run/antechamber"))
said |= dict(mode=dataclasses.asdict(hw.gpus.mode()), count=hw.gpus.count(), before=hw.gpus.ready())
said["gpus"] = [[g.arch, g.uuid, g.report.hex(), g.certificate.hex()] for g in hw.gpus.collect(nonce)]
hw.gpus.set_ready()
hw.measurements.extend_rtmr3(b"1" * 48)
said |= dict(after=hw.gpus.ready(), rtmr3=hw.measurements.read("rtmr3").hex(), mrtd=hw.measurements.read("mrtd").hex())
said |= dict(ccel=hw.measurements.ccel()[:4].hex(), quote=hw.quotes.quote(data).hex())
print(json.dumps(said))
"""


def simulator(*argv: str, **options: Any) -> "subprocess.CompletedProcess[Any]":
    command = [sys.executable, "-m", "antechamber.simulator", *argv]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, **({"text": True} | options))


def inside(state: Path, program: str, *knobs: str) -> Any:
    flags = [word for knob in knobs for word in ("--knob", knob)]
    done = simulator("--state", str(state), *flags, "exec", "--", sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state directory; afterwards no process and no mount of ours may be left."""
    directory = tmp_path / "state"
    yield directory
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    assert not list(processes(str(directory)))


def processes(word: str) -> Iterator[str]:
    """Command lines of other processes that have `word`."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and word in (line := (entry / "cmdline").read_bytes().decode(errors="replace")):
                yield line


def verify_quote(state: Path, quote: bytes, place: Path) -> str:
    """With the vendors' material of `state`, as a broker has it."""
    assert simulator("--state", str(state), "material", str(place)).returncode == 0
    root = x509.load_pem_x509_certificate((place / "intel_root.pem").read_bytes()).public_bytes(Encoding.DER)
    collateral = dcap_qvl.QuoteCollateralV3.from_json((place / "collateral.json").read_text())
    return str(dcap_qvl.verify_with_root_ca(quote, collateral, root, int(time.time())).status)


class TestRealAbi:
    pytestmark = real_abi

    def test_adapters_see_the_machine_at_the_real_paths(self, state: Path, tmp_path: Path) -> None:
        said = inside(state, ADAPTERS)
        quote = bytes.fromhex(said["quote"])
        assert quote[568:632] == REPORT_DATA
        assert verify_quote(state, quote, tmp_path / "material") == "UpToDate"
        assert said["rtmr3"] == hashlib.sha384(bytes(48) + b"1" * 48).hexdigest() == quote[520:568].hex()
        assert said["ccel"] == "01000000"
        facts = said["facts"]
        assert facts["tdx_guest"] is facts["rtmr_sysfs"] is facts["persistenced"] is facts["kexec_disabled"] is True
        assert (facts["swap"], facts["core_pattern"], facts["ptrace_scope"]) == ([], "|/bin/false", 2)
        assert [device["vendor"] for device in facts["pci"]] == [0x10DE]
        assert said["memory"] is True

    def test_gpu_evidence_through_real_pynvml_verifies(self, state: Path, tmp_path: Path) -> None:
        said = inside(state, ADAPTERS, "gpus=2", "arch=BLACKWELL", "multi_gpu=nvle")
        simulator("--state", str(state), "material", str(tmp_path / "material"))
        root = x509.load_pem_x509_certificate((tmp_path / "material" / "nvidia_root.pem").read_bytes())
        devices = [GpuEvidence(a, u, bytes.fromhex(r), bytes.fromhex(c)) for a, u, r, c in said["gpus"]]
        anchors = Anchors(None, spki_sha256(root))
        claims = verify_devices(devices, nonce=NONCE, anchors=anchors, now=int(time.time()))
        assert [claim.mode for claim in claims] == ["mpt", "mpt"]
        assert (said["count"], said["mode"]["multi_gpu"], said["before"], said["after"]) == (2, "nvle", False, True)

    @pytest.mark.parametrize(
        ("knob", "fact", "value"),
        [
            ("swap=/dev/vdb", "swap", ["/dev/vdb"]),
            ("credential=ssh.key", "credentials", ["ssh.key"]),
            ("persistenced=false", "persistenced", False),
            ("tdx_guest=false", "tdx_guest", False),
        ],
    )
    def test_attack_shows_at_the_real_path(self, state: Path, knob: str, fact: str, value: object) -> None:
        assert inside(state, ADAPTERS, knob)["facts"][fact] == value

    def test_files_keep_the_kernels_rules(self, state: Path) -> None:
        assert inside(state, Path(kernel_rules.__file__).read_text()) == kernel_rules.RULES

    def test_ready_state_is_one_for_all_processes_and_terminal(self, state: Path) -> None:
        steps = ["SetConfComputeGpusReadyState(1)", "GetConfComputeGpusReadyState()", "SetConfComputeGpusReadyState(0)"]
        steps += ["SetConfComputeGpusReadyState(1)"]
        child = "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlSystem{})"
        program = f"import json, subprocess, sys\nruns = [subprocess.run([sys.executable, '-c', {child!r}.format(s)], "
        program += f"capture_output=True, text=True) for s in {steps!r}]\n"
        program += "print(json.dumps([r.stdout.strip() or r.stderr.split()[-2:] for r in runs]))"
        assert inside(state, program) == ["0", "1", "0", ["Invalid", "Argument"]]

    def test_signal_is_passed_on_and_everything_ends(self, state: Path) -> None:
        command = [sys.executable, "-m", "antechamber.simulator", "--state", str(state), "exec", "--", "sleep", "987"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            until = time.monotonic() + 30
            while not any(line.startswith("sleep") for line in processes("sleep\0987")):
                assert time.monotonic() < until
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 128 + signal.SIGTERM
        assert not list(processes("sleep\0987"))


@pytest.mark.parametrize("stand_in", ["all", *PIECES])
def test_run_says_what_stands_in_and_quotes(state: Path, stand_in: str) -> None:
    done = simulator("--state", str(state), "--stand-in", stand_in, "run", "--", "quote", REPORT_DATA.hex(), text=False)
    assert done.returncode == 0, done.stderr
    assert bytes(done.stdout)[568:632] == REPORT_DATA
    told = bytes(done.stderr).decode()
    assert "SIMULATED" in told
    assert told.count("stands in (asked for)") == (4 if stand_in == "all" else 1)
    assert told.count("real ABI") + told.count("stands in") == 4


def test_run_leaves_the_state_to_be_removed(state: Path) -> None:
    assert simulator("--state", str(state), "run", "--", "--version").returncode == 0
    assert not (state / "machine.sock").exists()
    for path in sorted(state.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    state.rmdir()


def test_simulator_refuses_an_unknown_knob(state: Path) -> None:
    done = simulator("--state", str(state), "--knob", "nonsense=1", "run", "--", "--version")
    assert done.returncode == 78
    assert "simulator.knob" in done.stderr


def test_scratch_is_gone_when_no_state_was_given() -> None:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    before = set(Path("/dev/shm").glob("antechamber-simulator-*"))
    assert simulator("--standin", "run", "--", "--version", env=environment).returncode == 0
    assert set(Path("/dev/shm").glob("antechamber-simulator-*")) <= before
