"""The agent's socket: one request a connection, answered once; keys leave as sealed memfds, never as files."""

import contextlib
import fcntl
import json
import os
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from antechamber import strict
from antechamber.boot.attestor import Attestor
from antechamber.boot.identity import Identity
from antechamber.errors import AgentError, AppraisalRefused, ConfigError, HardwareUnavailable, is_code

_MAX_REQUEST = 64 << 10  # bytes
_MAX_ANSWER = 8 << 20  # bytes: a bundle fits
_MAX_HINT = 400  # characters
_WAITING = 8  # callers' bundles under way at once: each costs a quote
_PEER = struct.Struct("3i")  # pid, uid, gid. Source: unix(7), SO_PEERCRED

Answer = dict[str, Any]


def seal_key(keys: Identity) -> int:
    """The TLS private key (PKCS#8 PEM) in a memfd that nobody can change. Source: memfd_create(2), F_ADD_SEALS."""
    fd = os.memfd_create("tls-key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, keys.tls.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd


@dataclass(slots=True)
class Handover:
    """What the agent gives to its parts, each once."""

    engine: Answer
    gateway: Answer
    key_fd: int | None
    status: Callable[[], Answer]
    admitted: threading.Event = field(default_factory=threading.Event)  # the engine answered the golden prompt
    listening: threading.Event = field(default_factory=threading.Event)
    engine_pid: int | None = None  # who took the engine's part: never the gateway's too
    only_pid: int | None = None  # in `run`: our own child, and no other process of our user; 0 before it is there

    def expect(self, pid: int) -> None:
        """From now on hand over, and only to the process `pid`."""
        self.only_pid = pid
        self.admitted.set()


class AgentServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves `agent.sock` in threads of its own."""

    daemon_threads = True

    def __init__(self, path: Path, handover: Handover, attestor: Attestor) -> None:
        self.handover, self.attestor = handover, attestor
        self._flights: dict[bytes, Future[Answer]] = {}
        self._given: set[str] = set()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        path.unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            super().__init__(str(path), _Request)
        finally:
            os.umask(old)
        threading.Thread(target=self.serve_forever, name="agent.sock", daemon=True).start()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Only root and our own user: the socket's mode says so too, this does not depend on it."""
        return _peer(request)[1] in (0, os.geteuid())

    def end(self) -> None:
        """Let the gateway go, and close."""
        self._ended.set()
        self.shutdown()
        self.server_close()

    def answer(self, asked: Answer, peer_pid: int) -> tuple[Answer, int | None]:
        """The answer to one request of a process, and a file descriptor that goes with it."""
        op = asked.get("op")
        if op == "engine":
            answer = self._once("engine", self.handover.engine, peer_pid)
            self.handover.engine_pid = peer_pid
            return answer, None
        if op == "gateway":
            if not self.handover.admitted.wait(timeout=7200):
                raise HardwareUnavailable("handover.early", "the engine is not admitted", hint="start the engine")
            answer, fd = self._once("gateway", self.handover.gateway, peer_pid), self.handover.key_fd
            self.handover.key_fd = None
            return answer, fd
        if op == "leash":
            self._ended.wait()  # the gateway closes its port when this connection ends, however it ends
            return {"ok": True}, None
        if op == "listening":
            self.handover.listening.set()
            return {"ok": True}, None
        if op == "verdict":
            return self.attestor.verdict(), None
        if op == "status":
            return self.handover.status(), None
        if op == "bundle":
            return self._bundle(str(asked.get("nonce"))), None
        if op == "stored":
            return self._stored(str(asked.get("sha256"))), None
        raise ConfigError("handover.op", f"unknown request {str(op)[:32]!r}", hint="use this version's own parts")

    def _once(self, part: str, answer: Answer, peer_pid: int) -> Answer:
        engine = self.handover.engine_pid
        is_engine = engine is not None and engine in tuple(_ancestry(peer_pid))
        if self.handover.only_pid not in (None, peer_pid) or is_engine:
            raise AppraisalRefused(
                "handover.process", f"{part} is not handed to process {peer_pid}", hint="antechamber run starts its own"
            )
        with self._lock:
            if part in self._given:
                raise AppraisalRefused("handover.spent", f"{part} was handed over", hint="a boot starts each part once")
            self._given.add(part)
        return {"ok": True} | answer

    def _stored(self, digest: str) -> Answer:
        bundle = self.attestor.stored(digest)
        if bundle is None:
            raise HardwareUnavailable("bundle.unknown", "no bundle with that digest is kept", hint="ask with a nonce")
        return {"ok": True, "bundle": bundle.decode(), "sha256": digest}

    def _bundle(self, nonce: str) -> Answer:
        if not re.fullmatch(r"([0-9a-f]{2}){16,64}", nonce):
            raise ConfigError("bundle.nonce", "the nonce is not 16 to 64 bytes of hex", hint="send 32 random bytes")
        key = bytes.fromhex(nonce)
        with self._lock:
            flight, leads = self._flights.get(key), key not in self._flights
            if leads:
                if len(self._flights) >= _WAITING:
                    raise HardwareUnavailable("bundle.busy", f"{_WAITING} quotes under way", hint="ask again later")
                flight = self._flights[key] = Future()
        if flight is None:
            raise HardwareUnavailable("bundle.busy", "no quote under way", hint="ask again later")
        if leads:
            self._fly(key, flight)
        return flight.result(timeout=120)

    def _fly(self, key: bytes, flight: "Future[Answer]") -> None:
        try:
            bundle, digest = self.attestor.bundle(key)
            flight.set_result({"ok": True, "bundle": bundle.decode(), "sha256": digest})
        except AgentError as e:
            flight.set_exception(e)
        finally:
            with self._lock:
                del self._flights[key]


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    """pid, uid, gid of the other end. Source: unix(7), SO_PEERCRED."""
    pid, uid, gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid, gid


def _ancestry(pid: int) -> Iterator[int]:
    """A process and its parents, as far as they can be followed. Source: proc(5), /proc/PID/stat."""
    while pid > 1:
        yield pid
        try:
            pid = int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


class _Request(socketserver.StreamRequestHandler):
    server: AgentServer
    timeout = 30

    def handle(self) -> None:
        fd = None
        try:
            asked = parse_request(self.rfile.readline(_MAX_REQUEST + 1))
            answer, fd = self.server.answer(asked, _peer(self.connection)[0])
        except OSError as e:
            answer = {"ok": False, "code": "handover.op", "detail": type(e).__name__, "hint": "send one line of JSON"}
        except AgentError as e:
            answer = {"ok": False, "code": e.code, "detail": e.detail, "hint": e.hint}
        self._send(json.dumps(answer).encode() + b"\n", fd)

    def _send(self, data: bytes, fd: int | None) -> None:
        with contextlib.suppress(OSError):  # the asker is gone: nothing to tell it
            if fd is not None:
                sent = socket.send_fds(self.connection, [data], [fd])
                data = data[sent:]
            self.connection.sendall(data)
        if fd is not None:
            os.close(fd)


def parse_request(line: bytes) -> Answer:
    """One question to the agent. Raises ConfigError `handover.op`."""
    try:
        asked = strict.load_json(line, error=ConfigError, family="handover", limit=_MAX_REQUEST)
    except ConfigError as e:
        raise ConfigError("handover.op", e.detail, hint="send one line of JSON") from e
    if not isinstance(asked, dict):
        raise ConfigError("handover.op", "not a JSON object", hint="use this version's own parts")
    return asked


def parse_answer(line: bytes, path: str) -> Answer:
    """What the agent answers. Raises HardwareUnavailable `handover.none`, or the agent's own refusal."""
    try:
        answer = strict.load_json(line, error=ConfigError, family="handover", limit=_MAX_ANSWER)
    except ConfigError as e:
        raise _none(path) from e
    if not isinstance(answer, dict):
        raise _none(path)
    if answer.get("ok") is not True:
        code, detail, hint = (answer.get(name) for name in ("code", "detail", "hint"))
        if not is_code(code):
            raise _none(path)
        raise AppraisalRefused(str(code), str(detail), hint=str(hint)[:_MAX_HINT])
    return answer


def _none(path: object) -> HardwareUnavailable:
    return HardwareUnavailable(
        "handover.none", f"no agent answers at {path}", hint="start antechamber boot; only it hands over"
    )


def ask(path: Path, op: str, **arguments: str) -> Answer:
    """One request to the agent, for `exec` and `status`.

    Raises HardwareUnavailable `handover.none`, or the agent's own refusal.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(30)
            sock.connect(str(path))
            if _peer(sock)[1] not in (0, os.geteuid()):
                raise PermissionError(f"it belongs to uid {_peer(sock)[1]}")
            sock.sendall(json.dumps({"op": op} | arguments).encode() + b"\n")
            with sock.makefile("rb") as stream:
                line = stream.readline(_MAX_ANSWER + 1)
    except OSError as e:
        raise _none(path) from e
    return parse_answer(line, str(path))
