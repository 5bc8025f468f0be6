"""One deployment a module: the commands a user has, on a simulated machine."""

import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from antechamber.simulator.deployment import Deployment, prepared, scratch


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """A broker with a model key; every guest stands in at the ports, which any machine can."""
    yield from _deployed(standin=True)


@pytest.fixture(scope="module")
def real_abi() -> Iterator[Deployment]:
    """The same, with the simulation below the kernel's interfaces."""
    yield from _deployed(standin=False)


@pytest.fixture(scope="module")
def separated() -> Iterator[Deployment]:
    """The engine has a user of its own, who must be able to run this Python."""
    if not _runs_as_nobody():
        pytest.skip("[nobody] this Python lies where only root can run it")
    yield from _deployed(standin=True, engine_user="nobody")


def _runs_as_nobody() -> bool:
    try:
        return subprocess.run([sys.executable, "-c", ""], user="nobody", group="nogroup", check=False).returncode == 0
    except OSError:
        return False


def _deployed(*, standin: bool, engine_user: str = "") -> Iterator[Deployment]:
    root = scratch()
    if engine_user:
        root.chmod(0o711)  # as /run is: the engine's user gets through to what is its group's
    made: Deployment | None = None
    try:
        made = prepared(root, lambda _: None, standin=standin, interval_s=1, engine_user=engine_user)
        yield made
    finally:
        if made is not None:
            made.stop()
        shutil.rmtree(root, ignore_errors=True)
