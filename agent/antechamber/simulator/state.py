"""The simulator's directory: the seed of its vendors' keys, the socket, the compiled stub."""

import json
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from antechamber.errors import ConfigError
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.machine import Machine
from antechamber.simulator.nvidia import NvidiaPki

_MAX_SOCKET = 107  # bytes of a path. Source: unix(7)
_HINT = "give --state a directory of your own with mode 0700, such as one that mktemp -d makes"


@dataclass(frozen=True, slots=True)
class State:
    """`--state DIR`."""

    directory: Path

    @classmethod
    def open(cls, directory: Path) -> "State":
        """Make it if it is not there. Raises ConfigError `simulator.state` where others could read it.

        Not under /run: the simulated machine has its own.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = directory.stat()
        except OSError as e:
            raise ConfigError("simulator.state", f"{directory}: {e.strerror}", hint=_HINT) from e
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConfigError("simulator.state", f"{directory} is not ours alone", hint=_HINT)
        state = cls(directory.resolve())
        if len(os.fsencode(state.socket)) > _MAX_SOCKET or state.directory.is_relative_to("/run"):
            raise ConfigError("simulator.state", f"{directory} is too long a path, or under /run", hint=_HINT)
        return state

    @property
    def socket(self) -> Path:
        return self.directory / "machine.sock"

    @property
    def libraries(self) -> Path:
        """What LD_LIBRARY_PATH names: it has libnvidia-ml.so.1."""
        return self.directory / "lib"

    def machine(self, knobs: Knobs) -> Machine:
        """A machine of this directory's vendors, powered on."""
        seed, epoch = self._seed()
        return Machine(IntelPki(epoch, seed=seed), NvidiaPki(seed=seed), knobs)

    def _seed(self) -> tuple[bytes, int]:
        """Made once. Simulated keys only: nothing real follows from it."""
        path = self.directory / "vendors.json"
        if not path.exists():
            _write_once(path, json.dumps({"epoch": int(time.time()), "seed": os.urandom(32).hex()}))
        try:
            made = json.loads(path.read_text())
            return bytes.fromhex(made["seed"]), int(made["epoch"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ConfigError("simulator.state", f"{path}: {e}", hint="remove the directory") from e


def _write_once(path: Path, text: str) -> None:
    """All of it or nothing; the first of several writers wins."""
    part = path.with_suffix(f".{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        part.unlink()
