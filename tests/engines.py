"""Engines for tests: the built-in one as a process, and a wire that answers what it is told."""

import http.client
import json
import logging
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from antechamber import log
from antechamber.engine import catalog, probe, process
from antechamber.engine.catalog import Launch
from antechamber.engine.process import EngineProcess
from antechamber.errors import AgentError
from antechamber.simulator.capabilities import why_no_network

NETWORK: process.Network = "host" if why_no_network() else "own"  # what this machine can give an engine


def launch(model: Path, runtime: Path, options: tuple[str, ...] = ()) -> Launch:
    return catalog.plan(
        kind="builtin", image="", options=options, model=model, name="demo", socket=runtime / "engine" / "engine.sock"
    )


@contextmanager
def running(plan: Launch) -> Iterator[EngineProcess]:
    """A started engine, ready, and gone afterwards."""
    engine = process.start(plan, network=NETWORK)
    try:
        probe.await_ready(Path(plan.socket), lambda: engine.alive, 60)
        yield engine
    finally:
        engine.stop()


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=30)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.path)


def ask(path: str, method: str, url: str, body: bytes | dict[str, Any] | None = None) -> tuple[int, bytes]:
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    connection = UnixConnection(path)
    connection.request(method, url, raw)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


@contextmanager
def wire(path: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """A unix socket that reads a request and answers the next of `answers` (the last again and again), verbatim."""
    seen: list[bytes] = []

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (line := self.rfile.readline()):
                    return
                head += line
            length = next((int(h[15:]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:")), 0)
            seen.append(self.rfile.read(length))
            self.wfile.write(answers[min(len(seen), len(answers)) - 1])

    with socketserver.ThreadingUnixStreamServer(str(path), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield seen
        server.shutdown()


def http_answer(status: int, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body)


@contextmanager
def agent_log() -> Iterator[None]:
    """Records on stderr as in a run, and the logger as it was afterwards."""
    logger = logging.getLogger("antechamber")
    before = logger.handlers[:], logger.level, logger.propagate
    log.setup()
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate = before


@contextmanager
def refusals(*codes: str) -> Iterator[None]:
    """Swallow a refusal with one of these codes; any other fails the test."""
    try:
        yield
    except AgentError as error:
        if error.code not in codes:
            raise
