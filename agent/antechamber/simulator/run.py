"""`run`: a command of antechamber on a simulated machine that lives as long as the command."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence

from antechamber import cli
from antechamber.errors import HardwareUnavailable
from antechamber.simulator import linux, namespace
from antechamber.simulator.capabilities import Capabilities, capabilities
from antechamber.simulator.daemon import running
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.pieces import Pieces, choose
from antechamber.simulator.protocol import Ask, Remote
from antechamber.simulator.standin import PIECES, Piece, hardware, parse_facts
from antechamber.simulator.state import State

SOCKET = "ANTECHAMBER_SIM_SOCKET"  # the NVML stub asks there
_LOUD = "SIMULATED machine: what it proves, it proves of nothing. No anchor of Intel's or NVIDIA's accepts it."


def run(state: State, knobs: Knobs, stand_in: Collection[Piece], argv: Sequence[str]) -> int:
    """`run`: a command of antechamber; its exit status. Raises HardwareUnavailable `simulator.*`."""
    return _powered(state, knobs, stand_in, lambda pieces: _antechamber(state, pieces, argv))


def run_program(state: State, knobs: Knobs, argv: Sequence[str]) -> int:
    """`exec`: any program; its exit status. Raises HardwareUnavailable `simulator.stand-in`, `simulator.*`."""

    def command(pieces: Pieces) -> Sequence[str]:
        if pieces.stand_in:
            hint = "a program needs the real ABI; `run` takes commands of antechamber"
            raise HardwareUnavailable("simulator.stand-in", "; ".join(pieces.reasons.values()), hint=hint)
        return argv

    return _powered(state, knobs, (), command)


def _powered(
    state: State, knobs: Knobs, stand_in: Collection[Piece], command: Callable[[Pieces], Sequence[str]]
) -> int:
    """Power on, run, power off."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # until there is a command to pass it to
    pieces = choose(_found(state, stand_in), stand_in)
    for line in (_LOUD, *pieces.lines()):
        print(f"simulator: {line}", file=sys.stderr, flush=True)
    argv = command(pieces)
    with running(state, knobs) as ask, _machine(state, ask, pieces):
        return _await(argv, _environment(state, pieces))


def run_composed(state: State, stand_in: Collection[Piece], argv: Sequence[str]) -> int:
    """`composed`: the production command line, but for the adapters that stand in."""
    return cli.main(argv, hardware=lambda: hardware(Remote(state.socket), stand_in))


def _found(state: State, stand_in: Collection[Piece]) -> Capabilities:
    """Nothing is tried when nothing will be used."""
    if set(stand_in) == set(PIECES):
        return Capabilities(userns=False, fuse=False, cc=False, reasons={})
    return capabilities(state.libraries)


@contextlib.contextmanager
def _machine(state: State, ask: Ask, pieces: Pieces) -> Iterator[None]:
    fuse = pieces.real("quotes") or pieces.real("measurements")
    if not fuse and not pieces.real("host"):
        yield
        return
    with namespace.entered(state, ask, parse_facts(ask("facts")), fuse=fuse):
        yield


def _antechamber(state: State, pieces: Pieces, argv: Sequence[str]) -> Sequence[str]:
    """The plain production command where every piece is real."""
    if not pieces.stand_in:
        return [sys.executable, "-m", "antechamber", *argv]
    flags = [word for piece in pieces.stand_in for word in ("--stand-in", piece)]
    simulator = [sys.executable, "-m", "antechamber.simulator", "--state", str(state.directory), *flags]
    return [*simulator, "composed", "--", *argv]


def _environment(state: State, pieces: Pieces) -> dict[str, str]:
    environment = os.environ | {SOCKET: str(state.socket)}
    if pieces.real("gpus"):
        paths = [str(state.libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        environment["LD_LIBRARY_PATH"] = ":".join(paths)
    return environment


def _await(command: Sequence[str], environment: dict[str, str]) -> int:
    """The exit status, 128 + n where signal n ended it; SIGTERM is passed on, Ctrl-C reaches it by itself."""
    with subprocess.Popen(command, env=environment, preexec_fn=_end_with_us) as process:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
        try:
            status = process.wait()
        finally:
            signal.signal(signal.SIGINT, previous)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is left is cleaning up
    return status if status >= 0 else 128 - status


def _end_with_us() -> None:
    linux.die_with_parent(signal.SIGTERM)
