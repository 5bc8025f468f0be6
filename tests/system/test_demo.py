"""`scripts/demo`'s program: the whole show, and an end in the middle of it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import with_words

DEMO = [sys.executable, "-m", "antechamber.simulator.demo", "--standin"]


def test_demo_shows_the_main_job_and_three_attacks_and_leaves_nothing() -> None:
    done = subprocess.run(DEMO, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("SIMULATED", "ACCEPTED", "answer: Antechamber is", "0 failed", "nothing is left"):
        assert said in done.stdout
    assert re.findall(r"refused with ([\w.-]+)", done.stdout) == ["model.segment", "tdx.debug", "gpu.cc-mode"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_demo_leaves_nothing_when_it_is_stopped_in_the_middle(number: int) -> None:
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "verify before the first prompt" in line:
                break
        words = " ".join(w for child in psutil.Process(demo.pid).children() for w in child.cmdline())
        folder = re.search(r"/dev/shm/antechamber-[0-9a-f]{12}", words).group()
        os.kill(demo.pid, number)
        _, said = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Traceback" not in said
    deadline = time.monotonic() + 20
    while (left := with_words(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    assert not Path(folder).exists()
