"""The simulated machine at its real paths, in a mount namespace that only our command and its children see."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from antechamber.errors import HardwareUnavailable
from antechamber.ports import HostFacts
from antechamber.simulator import linux, tsmfuse
from antechamber.simulator.capabilities import Capabilities, capabilities
from antechamber.simulator.facade import MEASUREMENTS, PERSISTENCED, REPORT, Facade, files
from antechamber.simulator.protocol import Ask
from antechamber.simulator.state import State

__all__ = ["Capabilities", "capabilities", "entered"]

_MOUNTED_S = 10.0  # how long a FUSE file system may take to appear
_HINT = "give --stand-in all to run without namespaces"


@contextlib.contextmanager
def entered(state: State, ask: Ask, facts: HostFacts, *, fuse: bool) -> Iterator[None]:
    """Take this process into the namespace; its helpers end with the block. There is no way back out.

    Raises HardwareUnavailable `simulator.namespace`.
    """
    stage = state.directory / "stage"
    stage.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as helpers:
        try:
            linux.enter_namespace()
            Facade(stage).erect(files(facts, bytes.fromhex(ask("ccel"))), (REPORT, MEASUREMENTS, PERSISTENCED))
            helpers.callback(linux.unmount, str(stage))  # or its directory could not be removed
            if facts.persistenced:
                helpers.enter_context(_persistenced())
            if fuse:
                helpers.enter_context(_served(tsmfuse.serve_report, REPORT, ask))
                helpers.enter_context(_served(tsmfuse.serve_measurements, MEASUREMENTS, ask))
        except OSError as e:
            raise HardwareUnavailable("simulator.namespace", f"{e.filename}: {e.strerror}", hint=_HINT) from e
        if not fuse:  # the adapters stand in; the kernel's version is still told by the name
            (MEASUREMENTS / "rtmr3:sha384").touch()
        yield


@contextlib.contextmanager
def _served(serve: Callable[[Ask, str], None], place: Path, ask: Ask) -> Iterator[None]:
    """A FUSE file system over `place`, from a child."""

    def work() -> None:
        linux.rename_process("simulated-tsm")
        serve(ask, str(place))

    before = place.stat().st_dev
    with _child(work) as pid:
        until = time.monotonic() + _MOUNTED_S
        while place.stat().st_dev == before:
            if time.monotonic() > until or os.waitpid(pid, os.WNOHANG) != (0, 0):
                raise OSError(0, "FUSE did not mount", str(place))
            time.sleep(0.005)
        yield


@contextlib.contextmanager
def _persistenced() -> Iterator[None]:
    """A process with the daemon's name, and the file that names it."""
    with _child(_hold) as pid:
        (PERSISTENCED / "nvidia-persistenced.pid").write_text(f"{pid}\n")
        yield


def _hold() -> None:
    linux.rename_process("nvidia-persistenced")
    while True:
        signal.pause()


@contextlib.contextmanager
def _child(work: Callable[[], None]) -> Iterator[int]:
    """`work` in a fork that never outlives us."""
    pid = os.fork()
    if pid == 0:
        _run(work)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _run(work: Callable[[], None]) -> NoReturn:
    """In the child: never returns, and Ctrl-C at the terminal is for the command, not for us."""
    status = 1
    try:
        linux.die_with_parent()
        os.setsid()
        work()
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)
