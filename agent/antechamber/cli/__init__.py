"""The command line, and the composition root: only here do adapters meet the stages."""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from antechamber import log
from antechamber.cli.parser import build_parser
from antechamber.errors import AgentError
from antechamber.ports import Hardware

HardwareFactory = Callable[[], Hardware]


def main(argv: Sequence[str] | None = None, *, hardware: HardwareFactory | None = None) -> int:
    """Run one command. `hardware` is the simulator's composition root's way to hand in stand-ins."""
    args = build_parser().parse_args(argv)
    log.setup(args.log)
    args.hardware = hardware or real_hardware
    return run(args)


def run(args: argparse.Namespace) -> int:
    """Arguments in, exit status out; the only handler of refusals."""
    try:
        return int(args.run(args))
    except AgentError as error:  # one ERROR record, one exit status
        log.failure(error)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output left
        sys.stderr.close()
        return 141
    except Exception as error:  # noqa: BLE001  # a fault of ours still ends with a code, and without a secret's text
        log.failure(AgentError("internal.fault", _where(error), hint="report it, with the version and this line"))
        return AgentError.exit_status


def _where(error: BaseException) -> str:
    """Type and place of an exception; its text could hold anything."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    ours = next((f for f in reversed(frames) if "antechamber" in f.filename), None)
    return f"{type(error).__name__}{place}" + (f", from {Path(ours.filename).name}:{ours.lineno}" if ours else "")


def real_hardware() -> Hardware:
    """The adapters to this kernel and to NVML."""
    from antechamber.hardware.host import KernelHost
    from antechamber.hardware.measurements import SysfsMeasurements
    from antechamber.hardware.nvml import Nvml
    from antechamber.hardware.tsm import ConfigfsTsm

    return Hardware(ConfigfsTsm(), SysfsMeasurements(), Nvml(), KernelHost())
