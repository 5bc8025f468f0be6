"""One deployment a module: the commands a user has, on a simulated machine."""

import shutil
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


def _deployed(*, standin: bool) -> Iterator[Deployment]:
    root = scratch()
    made: Deployment | None = None
    try:
        made = prepared(root, lambda _: None, standin=standin, interval_s=1)
        yield made
    finally:
        if made is not None:
            made.stop()
        shutil.rmtree(root, ignore_errors=True)
