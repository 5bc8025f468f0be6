"""`python -m antechamber.simulator`: antechamber on a machine in software. Never in a production image."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from antechamber import log
from antechamber.errors import AgentError
from antechamber.simulator import daemon
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.machine import Machine
from antechamber.simulator.run import run, run_composed, run_program
from antechamber.simulator.standin import PIECES
from antechamber.simulator.state import State

_EXAMPLES = """examples:
  python -m antechamber.simulator run -- run --config antechamber.yaml
  python -m antechamber.simulator --knob debug=true --knob quote_s=1 run -- quote 00...
  python -m antechamber.simulator --state DIR material OUT

knobs: """


def main(argv: Sequence[str] | None = None) -> int:
    """Arguments in, exit status out."""
    args = _parser().parse_args(argv)
    log.setup("text")
    scratch = None if args.state else Path(tempfile.mkdtemp(prefix="antechamber-simulator-", dir=_memory()))
    try:
        return _dispatch(args, State.open(scratch or args.state))
    except AgentError as error:
        log.failure(error)
        return error.exit_status
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _dispatch(args: argparse.Namespace, state: State) -> int:
    stand_in = PIECES if args.standin or "all" in args.stand_in else tuple(args.stand_in)
    knobs = Knobs.parse(args.knob)
    match args.command:
        case "run":
            return run(state, knobs, stand_in, args.argv)
        case "exec":
            return run_program(state, knobs, args.argv)
        case "composed":
            return run_composed(state, stand_in, args.argv)
        case "daemon":
            return daemon.serve(state, knobs, sys.stdin.buffer, sys.stdout.buffer)
        case _:
            return material(state.machine(knobs), args.directory)


def material(machine: Machine, directory: Path) -> int:
    """`material DIR`: what a broker and policies need to know of the simulated vendors and machine."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "intel_root.pem").write_text(machine.intel.root_pem)
    (directory / "nvidia_root.pem").write_text(machine.nvidia.root_pem)
    (directory / "collateral.json").write_text(json.dumps(machine.intel.collateral(), indent=1))
    (directory / "reference.json").write_text(json.dumps(machine.reference(), indent=1))
    return 0


def _memory() -> str | None:
    """Where a simulated machine leaves nothing on a disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # mkdtemp makes it ours alone


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m antechamber.simulator",
        description="Run antechamber on a TD and GPUs in software. What it proves, it proves of nothing.",
        epilog=_EXAMPLES + ", ".join(f.name for f in fields(Knobs)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--state", type=Path, help="private directory that keeps the vendors' keys; default: a new one")
    parser.add_argument("--knob", action="append", default=[], metavar="NAME=VALUE", help="change the machine")
    parser.add_argument(
        "--standin", action="store_true", help="have every piece stand in, even where the real ABI can be had"
    )
    parser.add_argument(
        "--stand-in", action="append", default=[], choices=[*PIECES, "all"], help="have one piece stand in"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run_ = commands.add_parser("run", help="run a command of antechamber on a fresh machine")
    run_.add_argument("argv", nargs="*", metavar="-- ARGUMENT", help="of antechamber")
    exec_ = commands.add_parser("exec", help="run any program on a fresh machine, where all of the real ABI can be had")
    exec_.add_argument("argv", nargs="+", metavar="-- ARGUMENT")
    composed = commands.add_parser("composed")  # what `run` starts where a piece stands in
    composed.add_argument("argv", nargs="*")
    commands.add_parser("daemon", help="serve one machine on DIR/machine.sock until stdin ends")
    material_ = commands.add_parser("material", help="write trust anchors, collateral and Reference Values")
    material_.add_argument("directory", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
