"""Is the engine there, and is it the one that was packed? HTTP over its unix socket, standard library only."""

import hashlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from antechamber import strict
from antechamber.errors import EngineFailed

_MAX_ANSWER = 1 << 20  # bytes
_POLL_S = (0.02, 0.25)  # first and longest pause
_ASK_S = 5.0  # one /health
_GOLDEN_S = 120.0  # first answers compile kernels
_HINT = "read the engine's last log lines"


class Turn(Protocol):
    """A message of a golden conversation."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def await_ready(socket_path: Path, process_alive: Callable[[], bool], timeout_s: float) -> None:
    """Return once GET /health says 200. Raises EngineFailed `engine.died`, `engine.timeout`, `engine.protocol`."""
    deadline, pause = time.monotonic() + timeout_s, _POLL_S[0]
    while True:
        if not process_alive():
            raise EngineFailed("engine.died", "the engine ended before it was ready", hint=_HINT)
        left = deadline - time.monotonic()
        if left <= 0:
            detail = f"not ready after {timeout_s:g} s"
            raise EngineFailed("engine.timeout", detail, hint="raise engine.start_timeout_s, or read the engine's log")
        if _healthy(socket_path, min(_ASK_S, left)):
            return
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _POLL_S[1])


def _healthy(path: Path, timeout_s: float) -> bool:
    try:
        return _ask(path, "GET", "/health", None, timeout_s)[0] == 200
    except OSError:  # no socket yet, nobody behind it, or too busy loading to answer
        return False


def golden_text(
    socket_path: Path, model_name: str, prompt: str | Sequence[Turn], max_tokens: int, *, timeout_s: float = _GOLDEN_S
) -> str:
    """What the engine continues the golden prompt with, greedily: a string is a completion, messages are a chat.

    Raises EngineFailed `engine.died`, `engine.timeout`, `engine.protocol`.
    """
    asked: dict[str, Any] = {"model": model_name, "max_tokens": max_tokens, "temperature": 0, "stream": False}
    if isinstance(prompt, str):
        path = "/v1/completions"
        asked["prompt"] = prompt
    else:
        path = "/v1/chat/completions"
        asked["messages"] = [{"role": m.role, "content": m.content} for m in prompt]
    try:
        status, body = _ask(socket_path, "POST", path, json.dumps(asked).encode(), timeout_s)
    except TimeoutError as e:
        raise EngineFailed("engine.timeout", f"no answer to the golden prompt in {timeout_s:g} s", hint=_HINT) from e
    except OSError as e:
        raise EngineFailed("engine.died", f"it hung up on the golden prompt: {e.strerror}", hint=_HINT) from e
    if status != 200:
        raise EngineFailed("engine.protocol", f"the golden prompt got HTTP {status}", hint=_HINT)
    return parse_answer(body)


def _ask(path: Path, method: str, url: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
    connection = _Unix(path, timeout_s)
    try:
        connection.request(method, url, body, {"Content-Type": "application/json", "Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read(_MAX_ANSWER + 1)
    except http.client.RemoteDisconnected:  # an OSError too: it died, or was about to listen
        raise
    except http.client.HTTPException as e:
        raise EngineFailed("engine.protocol", f"no HTTP answer: {type(e).__name__}", hint=_HINT) from e
    finally:
        connection.close()


def parse_answer(body: bytes) -> str:
    """Text of the first choice of a completion or chat completion. Raises EngineFailed `engine.protocol`."""
    try:
        value = strict.load_json(body, error=EngineFailed, family="engine", limit=_MAX_ANSWER)
        choice = value["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (EngineFailed, LookupError, TypeError) as e:
        raise EngineFailed("engine.protocol", "the golden answer is not a completion", hint=_HINT) from e
    if not isinstance(text, str):
        raise EngineFailed("engine.protocol", "the golden answer has no text", hint=_HINT)
    return text


def require_golden(accepted: Collection[str], text: str) -> None:
    """Refuse an engine that continues otherwise than sealed when the model was packed.

    `accepted` are the texts sealed for this engine and precision. Raises EngineFailed `engine.golden`.
    """
    if text in accepted:
        return
    seen = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    if not accepted:
        detail, hint = "no golden text is sealed for this engine and precision", "seal one: antechamber pack --golden"
    else:
        detail = f"the golden prompt got another text, sha256 {seen[:16]}, than the {len(accepted)} accepted"
        hint = "the weights, the engine or the precision are not those that were packed"
    raise EngineFailed("engine.golden", detail, hint=hint)
