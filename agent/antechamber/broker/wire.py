"""Below the routes: what is no HTTP, and what HTTP would have but the protocol has not.

A library's own answer repeats what it could not read, and its log says it too: a token in a header that is malformed
would stand there.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from aiohttp import HttpVersion11, web

from antechamber import log
from antechamber.broker.messages import ErrorInformation

MAX_FIELD = 512 << 10  # bytes of one header: tokens travel there
HEAD_TIMEOUT_S = 75  # from connect to the end of the first head, and idle afterwards
_JSON = "application/json"
_SILENT = logging.Logger("antechamber.broker.wire", logging.CRITICAL + 1)  # of no tree: aiohttp's own words go nowhere


class Protocol(web.RequestHandler):
    """One connection. What it cannot read it refuses with the protocol's error object, without the client's words."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Raises ConnectionError where an answer has begun."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun")
        if status >= 500:  # a fault of ours below the middleware
            log.event("broker.failed", level=logging.ERROR, path="", error=type(exc).__name__)
        answer = error(
            status, ErrorInformation("PluginInternalError", f"not HTTP as it is read here: {type(exc).__name__}")
        )
        answer.force_close()
        return answer


def protocols(server: web.Server) -> Callable[[], asyncio.Protocol]:
    """A protocol for each connection to a server."""
    return partial(
        Protocol,
        server,
        loop=asyncio.get_running_loop(),
        keepalive_timeout=HEAD_TIMEOUT_S,
        logger=_SILENT,
        access_log=_SILENT,
        max_line_size=16 << 10,
        max_field_size=MAX_FIELD,
        auto_decompress=False,
    )


async def expect(request: web.Request) -> web.StreamResponse | None:
    """100-continue, or nothing: RFC 9110, 10.1.1."""
    if request.version < HttpVersion11:
        return None
    if request.headers.get("Expect", "").lower() != "100-continue":
        return error(417, ErrorInformation("PluginInternalError", "an expectation other than 100-continue"))
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # nothing of the answer has left
    return None


def error(status: int, said: ErrorInformation) -> web.Response:
    """The protocol's error object."""
    return web.Response(status=status, body=said.build(), content_type=_JSON)
