"""OpenAI's wire format: request bytes to dataclasses, pieces to bodies and chunks. Pure.

Source: OpenAI API reference, chat/completions and completions. A parameter that would change the answer and that this
engine does not have is refused; others are ignored, as servers of this API do.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from antechamber import strict
from antechamber.engine.builtin.generate import Finish
from antechamber.engine.builtin.tokens import Message, Sampling
from antechamber.errors import EngineFailed

MAX_BODY = 8 << 20  # bytes
_MAX_MESSAGES, _MAX_STOPS, _MAX_STOP = 1024, 4, 256
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {  # values that ask for nothing
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
}


class ApiError(Exception):
    """An answer in OpenAI's error shape. Its text quotes no prompt."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> bytes:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return dump({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks for."""

    model: str
    prompt: str | tuple[int, ...] | tuple[Message, ...]
    chat: bool
    max_tokens: int | None  # None: as many as fit
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool

    @classmethod
    def parse(cls, raw: bytes, *, chat: bool) -> "Request":
        """Raises ApiError 400, 413."""
        value = _object(raw)
        for key, neutral in _NEUTRAL.items():
            if not any(_same(value.get(key), n) for n in neutral):
                raise _bad(key, "is not supported by this engine", code="unsupported_parameter")
        limit = "max_completion_tokens" if value.get("max_completion_tokens") is not None and chat else "max_tokens"
        max_tokens = _whole(value, limit, 1, 1 << 24)
        stream = _flag(value, "stream")
        return cls(
            model=_model(value),
            prompt=_messages(value) if chat else _prompt(value),
            chat=chat,
            max_tokens=max_tokens if chat or max_tokens is not None else 16,
            sampling=Sampling(
                temperature=_real(value, "temperature", 0.0, 2.0, 1.0),
                top_p=_real(value, "top_p", 0.0, 1.0, 1.0),
                seed=_seed(value),
            ),
            stop=_stop(value),
            stream=stream,
            include_usage=stream and _include_usage(value),
        )


def _object(raw: bytes) -> Mapping[str, Any]:
    if len(raw) > MAX_BODY:
        raise ApiError(413, f"the body has more than {MAX_BODY} bytes")
    try:
        value = strict.load_json(raw, error=EngineFailed, family="engine", limit=MAX_BODY)
    except EngineFailed as e:
        raise ApiError(400, "the body is not valid JSON") from e
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object")
    return value


def _bad(param: str, what: str, *, code: str | None = None) -> ApiError:
    return ApiError(400, f"'{param}' {what}", param=param, code=code)


def _same(seen: object, neutral: object) -> bool:
    return seen == neutral and isinstance(seen, bool) == isinstance(neutral, bool)


def _flag(value: Mapping[str, Any], key: str) -> bool:
    seen = value.get(key)
    if not isinstance(seen, bool | None):
        raise _bad(key, "must be a boolean")
    return bool(seen)


def _whole(value: Mapping[str, Any], key: str, low: int, high: int) -> int | None:
    seen = value.get(key)
    if seen is not None and (not isinstance(seen, int) or isinstance(seen, bool) or not low <= seen <= high):
        raise _bad(key, f"must be an integer from {low} to {high}")
    return seen


def _real(value: Mapping[str, Any], key: str, low: float, high: float, default: float) -> float:
    seen = value.get(key)
    if seen is None:
        return default
    if not isinstance(seen, int | float) or isinstance(seen, bool) or not low <= seen <= high:
        raise _bad(key, f"must be a number from {low} to {high}")
    return float(seen)


def _seed(value: Mapping[str, Any]) -> int | None:
    seed = _whole(value, "seed", -(1 << 63), (1 << 63) - 1)
    return None if seed is None else seed % (1 << 64)  # numpy takes no negative seed


def _model(value: Mapping[str, Any]) -> str:
    seen = value.get("model")
    if not isinstance(seen, str):
        raise _bad("model", "must be a string")
    return seen


def _prompt(value: Mapping[str, Any]) -> str | tuple[int, ...]:
    seen = value.get("prompt")
    if isinstance(seen, list) and len(seen) == 1 and isinstance(seen[0], str | list):
        seen = seen[0]
    if isinstance(seen, str):
        return seen
    if isinstance(seen, list) and seen and all(isinstance(t, int) and not isinstance(t, bool) for t in seen):
        return tuple(seen)
    raise _bad("prompt", "must be one string or one list of tokens")


def _messages(value: Mapping[str, Any]) -> tuple[Message, ...]:
    seen = value.get("messages")
    if not isinstance(seen, list) or not 1 <= len(seen) <= _MAX_MESSAGES:
        raise _bad("messages", f"must be a list of 1 to {_MAX_MESSAGES} messages")
    return tuple(_message(m, f"messages[{i}]") for i, m in enumerate(seen))


def _message(seen: object, at: str) -> Message:
    if not isinstance(seen, dict) or not isinstance(seen.get("role"), str) or seen["role"] not in _ROLES:
        raise _bad(f"{at}.role", "must be system, developer, user or assistant")
    content = seen.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        texts = [p.get("text") for p in content]
        content = "".join(texts) if all(isinstance(t, str) for t in texts) else None
    if not isinstance(content, str):
        raise _bad(f"{at}.content", "must be text")
    return Message(_ROLES[seen["role"]], content)


def _stop(value: Mapping[str, Any]) -> tuple[str, ...]:
    seen = value.get("stop")
    listed = [] if seen is None else seen if isinstance(seen, list) else [seen]
    if len(listed) > _MAX_STOPS or not all(isinstance(s, str) and 0 < len(s) <= _MAX_STOP for s in listed):
        raise _bad("stop", f"must be at most {_MAX_STOPS} strings of 1 to {_MAX_STOP} characters")
    return tuple(listed)


def _include_usage(value: Mapping[str, Any]) -> bool:
    options = value.get("stream_options")
    if not isinstance(options, dict | None):
        raise _bad("stream_options", "must be an object")
    return _flag(options or {}, "include_usage")


@dataclass(frozen=True, slots=True)
class Reply:
    """What every body and chunk of one answer shares."""

    request: Request
    id: str
    created: int  # seconds since the epoch
    prompt_tokens: int

    def whole(self, text: str, tokens: int, finish: Finish) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self.request.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return dump(self._head("chat.completion", [choice]) | {"usage": self._usage(tokens)})

    def opening(self) -> bytes:
        """The first event of a stream: a chat names the role; a completion says nothing yet."""
        return self._chunk({"role": "assistant", "content": ""}, None) if self.request.chat else b""

    def delta(self, text: str, finish: Finish | None) -> bytes:
        if not self.request.chat:
            return self._chunk(text, finish) if text or finish else b""
        said = self._chunk({"content": text}, None) if text else b""
        return said + (self._chunk({}, finish) if finish else b"")

    def closing(self, tokens: int) -> bytes:
        usage = self._head("chat.completion.chunk", []) | {"usage": self._usage(tokens)}
        return (event(usage) if self.request.include_usage else b"") + b"data: [DONE]\n\n"

    def _chunk(self, said: object, finish: Finish | None) -> bytes:
        choice = {"index": 0, "delta" if self.request.chat else "text": said, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.request.include_usage else {}
        return event(self._head("chat.completion.chunk", [choice]) | usage)

    def _head(self, chat_object: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = chat_object if self.request.chat else "text_completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.request.model,
            "choices": choices,
        }

    def _usage(self, tokens: int) -> dict[str, int]:
        total = self.prompt_tokens + tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens, "total_tokens": total}


def models(name: str, created: int, context: int) -> bytes:
    """Body of GET /v1/models."""
    entry = {"id": name, "object": "model", "created": created, "owned_by": "antechamber", "max_model_len": context}
    return dump({"object": "list", "data": [entry]})


def dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + dump(value) + b"\n\n"
