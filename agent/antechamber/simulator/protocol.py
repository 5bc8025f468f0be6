"""How a machine is asked: one line of words in, one line out, bytes in hex. Simple enough for the C stub of NVML.

`ok [WORDS]`, or `errno N` (the kernel's), or `nvml N` (an nvmlReturn_t).
"""

import errno
import json
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from antechamber.simulator.machine import REGISTERS, Machine, NvmlRefusal

Ask = Callable[..., str]  # words in, the answer's words out; raises OSError, NvmlRefusal
MAX_LINE = 1 << 20  # bytes; an event log in hex is the longest
# In the order of nvml.h's numbers.
ENVIRONMENTS: tuple[Literal["unavailable", "sim", "prod"], ...] = ("unavailable", "sim", "prod")
MULTI_GPU: tuple[Literal["none", "protected-pcie", "nvle"], ...] = ("none", "protected-pcie", "nvle")
CPUS: tuple[Literal["none", "amd-sev", "intel-tdx", "amd-sev-snp", "amd-snp-vtom"], ...] = (
    "none",
    "amd-sev",
    "intel-tdx",
    "amd-sev-snp",
    "amd-snp-vtom",
)


def answer(machine: Machine, line: str) -> str:
    """The answer to one line, for any line."""
    try:
        name, *words = line.split()
        return f"ok {_OPERATIONS[name](machine, *words)}".rstrip()
    except OSError as e:
        return f"errno {e.errno}"
    except NvmlRefusal as e:
        return f"nvml {e.code}"
    except (ValueError, KeyError, TypeError):  # no such operation, or not its words
        return f"errno {errno.EINVAL}"


def words_of(reply: str) -> str:
    """What follows `ok`. Raises OSError, NvmlRefusal as the machine did."""
    kind, _, rest = reply.strip().partition(" ")
    if kind == "ok":
        return rest
    if not rest.isdecimal():
        raise OSError(errno.EPROTO, f"the simulated machine said {reply[:80]!r}")
    if kind == "nvml":
        raise NvmlRefusal(int(rest))
    raise OSError(int(rest), os.strerror(int(rest)))


def in_process(machine: Machine) -> Ask:
    """Ask a machine of this process."""
    return lambda *words: words_of(answer(machine, " ".join(words)))


@dataclass(frozen=True, slots=True)
class Remote:
    """Ask the daemon behind a unix socket: a connection for each question, so that forks share nothing."""

    path: Path

    def __call__(self, *words: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.path))
            connection.sendall(" ".join(words).encode() + b"\n")
            with connection.makefile("rb") as reader:
                return words_of(reader.readline(MAX_LINE).decode())


def _extend(machine: Machine, register: str, digest: str) -> str:
    machine.extend(("rtmr0", "rtmr1", "rtmr2", "rtmr3").index(register), bytes.fromhex(digest))
    return ""


def _mode(machine: Machine) -> str:
    """environment ccFeature devToolsMode multiGpuMode cpuCaps gpusCaps count ready."""
    mode = machine.mode()
    numbers = (
        ENVIRONMENTS.index(mode.environment),
        mode.cc_feature,
        mode.devtools,
        MULTI_GPU.index(mode.multi_gpu),
        CPUS.index(mode.cpu),
        machine.knobs.cc,
        len(machine.gpus),
        machine.ready,
    )
    return " ".join(str(int(n)) for n in numbers)


def _gpu(machine: Machine, index: str) -> str:
    """uuid, architecture (word and nvml.h's number), VBIOS, driver."""
    gpu, number = machine.gpu(int(index)), int(index)
    return f"{gpu.uuid} {gpu.chip.arch} {gpu.chip.nvml_arch} {machine.vbios(number)} {machine.knobs.driver}"


def _set_ready(machine: Machine, ready: str) -> str:
    machine.set_ready(ready != "0")
    return ""


def _reset(machine: Machine) -> str:
    machine.reset()
    return ""


_OPERATIONS: dict[str, Callable[..., str]] = {
    "quote": lambda m, data: m.quote(bytes.fromhex(data)).hex(),
    "read": lambda m, register: m.read(REGISTERS[REGISTERS.index(register)]).hex(),
    "extend": _extend,
    "ccel": lambda m: m.ccel().hex(),
    "mode": _mode,
    "gpu": _gpu,
    "ready": lambda m: str(int(m.ready)),
    "set-ready": _set_ready,
    "certificate": lambda m, index: m.certificate(int(index)).hex(),
    "report": lambda m, index, nonce: m.report(int(index), bytes.fromhex(nonce)).hex(),
    "facts": lambda m: json.dumps(asdict(m.facts())),
    "stats": lambda m: json.dumps(asdict(m.stats)),
    "reset": _reset,
}
