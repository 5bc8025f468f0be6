"""One machine, served to several processes over a unix socket."""

import contextlib
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from antechamber.errors import HardwareUnavailable
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.machine import Machine
from antechamber.simulator.protocol import MAX_LINE, Remote, answer
from antechamber.simulator.state import State

_READY = b"ready\n"


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, machine: Machine) -> None:
        self.machine = machine
        super().__init__(str(path), _Answer)


class _Answer(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while line := self.rfile.readline(MAX_LINE):
                self.wfile.write(answer(self.server.machine, line.decode(errors="replace")).encode() + b"\n")


@contextlib.contextmanager
def listening(path: Path, machine: Machine) -> Iterator[Remote]:
    """Serve `machine` from threads of this process."""
    path.unlink(missing_ok=True)
    with _Server(path, machine) as server:
        path.chmod(0o600)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Remote(path)
        finally:
            server.shutdown()
            thread.join()
            path.unlink(missing_ok=True)


def serve(state: State, knobs: Knobs, until: IO[bytes], out: IO[bytes]) -> int:
    """`daemon`: serve until `until` ends, which it does when whoever started us is gone."""
    with listening(state.socket, state.machine(knobs)):
        out.write(_READY)
        out.flush()
        while until.read(1):
            pass
    return 0


@contextlib.contextmanager
def running(state: State, knobs: Knobs) -> Iterator[Remote]:
    """A daemon of its own process, powered on; off at the end. Raises HardwareUnavailable `simulator.daemon`."""
    settings = [word for setting in knobs.settings() for word in ("--knob", setting)]
    command = [sys.executable, "-m", "antechamber.simulator", "--state", str(state.directory), *settings, "daemon"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            if process.stdout is None or process.stdout.readline() != _READY:
                raise HardwareUnavailable(
                    "simulator.daemon", "the daemon did not start", hint="look above for its message"
                )
            yield Remote(state.socket)
        finally:
            if process.stdin:
                process.stdin.close()
