"""The micro VM's program: what the machine is, whole boots of the agent, and every fault. One JSON object a line."""

import dataclasses
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import faults
import kernel_rules

from antechamber.cli import real_hardware
from antechamber.hardware.host import KernelHost

SIGNER_SOCKET = "/run/simulator.sock"
ENVIRONMENT = {
    "PATH": "/usr/bin",
    "LANG": "C.UTF-8",
    "ANTECHAMBER_SIM_SOCKET": SIGNER_SOCKET,
    "LD_LIBRARY_PATH": "/opt/simulator",
}


def emit(record: dict[str, object]) -> None:
    print(json.dumps(record), flush=True)


def facts() -> dict[str, object]:
    hw = real_hardware()
    ccel = hw.measurements.ccel()
    return dataclasses.asdict(KernelHost().facts()) | {
        "ccel": None if ccel is None else len(ccel),
        "simulator": importlib.util.find_spec("antechamber.simulator") is not None,
        "python": sys.version.split()[0],
    }


def boot(name: str) -> None:
    """`antechamber boot` until it waits for its engine; all its records, and its exit status."""
    command = [sys.executable, "-m", "antechamber", "--log", "json", "boot", "--config", "/vm/antechamber.yaml"]
    begin, records = time.monotonic(), []
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True) as agent:
        for line in agent.stderr or ():
            print(line.rstrip(), file=sys.stderr, flush=True)
            record = json.loads(line)
            records.append(record)
            if (record["event"], record.get("stage")) == ("stage.begin", "admit"):
                agent.send_signal(signal.SIGTERM)
    seconds = round(time.monotonic() - begin, 1)
    emit({"boot": name, "status": agent.wait(), "records": records, "seconds": seconds})


def reload_driver() -> None:
    """The GPUs' ready state goes only with the driver."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(SIGNER_SOCKET)
        connection.sendall(b"reset\n")
        connection.recv(64)


def main() -> None:
    until = time.monotonic() + 60
    while not os.path.exists(faults.SIGNER):
        if time.monotonic() > until:
            raise TimeoutError("the signer did not start")
        time.sleep(0.1)
    emit({"facts": facts()})
    boot("boot")
    registers = Path(faults.REGISTERS).exists()
    if registers:
        reload_driver()
        boot("second-boot")
        faults.unload()
        faults.load()
        reload_driver()
        faults._set({"stale": 1})
        boot("boot-stale-quote")
    emit({"rules": kernel_rules.ask()})
    faults.run_all(registers, emit)
    emit({"done": True})


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # the host's side shows it
        emit({"failed": f"{type(error).__name__}: {error}"})
        raise
