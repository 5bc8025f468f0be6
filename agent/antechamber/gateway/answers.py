"""Refusals of a request, in the shape of OpenAI's errors."""

import json
from collections.abc import Mapping

from aiohttp import web

from antechamber.errors import AgentError

EVERY_ANSWER = {"cache-control": "no-store", "server": "antechamber"}  # no cache keeps it; no version is told


class RequestRefused(AgentError):
    """A request that is not served. It ends the request, never the gateway."""

    exit_status = 75

    def __init__(
        self, code: str, detail: str, *, hint: str, status: int, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(code, detail, hint=hint)
        self.status, self.headers = status, dict(headers or {})


def refusal(refused: RequestRefused, headers: Mapping[str, str]) -> web.Response:
    """The answer to a refused request. The connection closes: its body may be unread."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    error = {"message": f"{refused.detail}: {refused.hint}", "type": kind, "param": None, "code": refused.code}
    answer = json_answer(
        json.dumps({"error": error}).encode(), status=refused.status, headers={**headers, **refused.headers}
    )
    answer.force_close()
    return answer


def json_answer(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """JSON that no cache keeps."""
    fixed = {**EVERY_ANSWER, "content-type": "application/json"}
    return web.Response(body=body, status=status, headers={**fixed, **(headers or {})})
