"""What lies below the guest's kernel: the TDX module and quoting enclave, and the GPUs behind NVML.

Quotes are over the registers that the kernel module sends, so they say what the kernel's registers say.
"""

import os
import signal
import time
from pathlib import Path

from antechamber.simulator.daemon import listening
from antechamber.simulator.intel import IntelPki, td_body
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.state import State

DEVICE = Path("/dev/simtsm_qe")
SOCKET = Path("/run/simulator.sock")
PID = Path("/run/signer.pid")
REGISTERS = ("mr_td", "mr_config_id", "rtmr0", "rtmr1", "rtmr2", "rtmr3")  # 48 bytes each, after 64 of REPORTDATA


class LetGo(Exception):
    """SIGUSR1: the module is about to be unloaded."""


class Holding:
    """Whether the device is open: only then a signal means anything."""

    device = False


def let_go(_number: int, _frame: object) -> None:
    if Holding.device:
        raise LetGo


def sign(intel: IntelPki, tdreport: bytes) -> bytes:
    values = {name: tdreport[64 + 48 * i : 112 + 48 * i] for i, name in enumerate(REGISTERS)}
    rtmr = tuple(values[f"rtmr{i}"] for i in range(4))
    body = td_body(mr_td=values["mr_td"], mr_config_id=values["mr_config_id"], rtmr=rtmr, report_data=tdreport[:64])
    return intel.quote_v4(body)


def identity() -> tuple[int, int] | None:
    """Of the device as the module made it; None where there is none."""
    try:
        found = DEVICE.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns


def serve(intel: IntelPki) -> None:
    """Until the module goes; returns when its device is gone, or another."""
    ours = identity()
    try:
        fd = os.open(DEVICE, os.O_RDWR)
    except OSError:  # it went in between, or did not come to stay
        return
    try:
        Holding.device = True
        while True:
            os.write(fd, sign(intel, os.read(fd, 4096)))
    except LetGo:
        pass
    finally:
        Holding.device = False
        os.close(fd)
    while identity() == ours:
        time.sleep(0.02)


def main() -> None:
    machine = State(Path("/vm/simulator")).machine(Knobs())
    signal.signal(signal.SIGUSR1, let_go)
    with listening(SOCKET, machine):
        PID.write_text(str(os.getpid()))
        while True:
            if identity():
                serve(machine.intel)
            time.sleep(0.02)


if __name__ == "__main__":
    main()
