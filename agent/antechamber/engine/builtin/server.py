"""The built-in engine's HTTP server: OpenAI's API on a unix socket. It logs no request and no text of one."""

import asyncio
import logging
import signal
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from antechamber import log
from antechamber.engine.builtin import api
from antechamber.engine.builtin.api import ApiError, Reply, Request
from antechamber.engine.builtin.generate import Job, Model, Piece
from antechamber.errors import EngineFailed

_DRAIN_S = 5.0  # what SIGTERM leaves to answers in the making
_STREAM = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}


@dataclass(frozen=True, slots=True)
class Limits:
    running: int = 2  # answers computed at once
    waiting: int = 64  # requests that may wait for their turn; more are told to come back


class Server:
    """One model, behind /v1/chat/completions, /v1/completions, /v1/models and /health."""

    def __init__(self, model: Model, name: str, limits: Limits) -> None:
        self._model, self._name, self._limits = model, name, limits
        self._created = int(time.time())
        self._present = 0  # requests running or waiting
        self._slots = asyncio.Semaphore(limits.running)
        self._pool = ThreadPoolExecutor(limits.running, thread_name_prefix="generate")

    def application(self) -> web.Application:
        app = web.Application(middlewares=[_in_openai_shape], client_max_size=api.MAX_BODY)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        return app

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _request: web.Request) -> web.Response:
        return _json(api.models(self._name, self._created, self._model.context))

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        return await self._answer(http, chat=True)

    async def _completion(self, http: web.Request) -> web.StreamResponse:
        return await self._answer(http, chat=False)

    async def _answer(self, http: web.Request, *, chat: bool) -> web.StreamResponse:
        with self._admitted():
            request = Request.parse(await http.read(), chat=chat)
            if request.model != self._name:
                raise ApiError(404, "no such model here", code="model_not_found", param="model")
            async with self._slots:
                job = await self._in_thread(lambda: self._job(request))
                identity = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
                reply = Reply(request, identity, int(time.time()), len(job.prompt))
                async with aclosing(self._pieces(job)) as pieces:
                    return await (_stream(http, reply, pieces) if request.stream else _whole(reply, pieces))

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Bound what is read into memory. Raises ApiError 503."""
        if self._present >= self._limits.running + self._limits.waiting:
            raise ApiError(503, "too many requests wait; try again", code="overloaded")
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1

    async def _in_thread(self, work: Callable[[], Job]) -> Job:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _job(self, request: Request) -> Job:
        """Tokens of the prompt, and room for the answer. Raises ApiError 400."""
        ids = self._ids(request)
        room = self._model.context - len(ids)
        wanted = max(room, 1) if request.max_tokens is None else request.max_tokens
        if wanted > room:
            message = (
                f"the context is {self._model.context} tokens; the prompt has {len(ids)}, {wanted} more are asked for"
            )
            raise ApiError(400, message, code="context_length_exceeded")
        return Job(ids, wanted, request.sampling, request.stop)

    def _ids(self, request: Request) -> tuple[int, ...]:
        tokens, prompt = self._model.tokens, request.prompt
        try:
            if isinstance(prompt, str):
                ids = tuple(tokens.prompt(prompt))
            elif request.chat:
                ids = tuple(tokens.conversation(prompt))  # type: ignore[arg-type]  # messages, since it is a chat
            else:
                ids = prompt  # type: ignore[assignment]  # token numbers, since it is no chat
        except EngineFailed as e:
            raise ApiError(400, e.detail, code=e.code) from e
        if not ids or not all(0 <= i < self._model.llama.arch.vocabulary for i in ids):
            raise ApiError(400, "the prompt is empty, or has a token that is not in the vocabulary", param="prompt")
        return ids

    async def _pieces(self, job: Job) -> AsyncGenerator[Piece, None]:
        """Compute in a thread; stop it when nobody listens any more. The turn ends only when the thread did."""
        loop, gone = asyncio.get_running_loop(), threading.Event()
        ready: asyncio.Queue[Piece | None] = asyncio.Queue()  # bounded by max_tokens

        def work() -> None:
            try:
                for piece in self._model.generate(job, gone.is_set):
                    loop.call_soon_threadsafe(ready.put_nowait, piece)
            finally:
                loop.call_soon_threadsafe(ready.put_nowait, None)

        working = loop.run_in_executor(self._pool, work)
        try:
            while (piece := await ready.get()) is not None:
                yield piece
        finally:
            gone.set()
            await working


async def _whole(reply: Reply, pieces: AsyncGenerator[Piece, None]) -> web.Response:
    text = ""
    async for piece in pieces:
        text += piece.text
    return _json(reply.whole(text, piece.tokens, piece.finish or "stop"))


async def _stream(http: web.Request, reply: Reply, pieces: AsyncGenerator[Piece, None]) -> web.StreamResponse:
    response = web.StreamResponse(headers=_STREAM)
    with suppress(ConnectionResetError):  # the client went: `pieces` is closed, and with it the computation
        await response.prepare(http)
        await response.write(reply.opening())
        async for piece in pieces:
            if said := reply.delta(piece.text, piece.finish):
                await response.write(said)
        await response.write(reply.closing(piece.tokens))
        await response.write_eof()
    return response


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


@web.middleware
async def _in_openai_shape(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as e:
        return _json(e.body(), e.status)
    except web.HTTPException as e:  # no such path, wrong method, body too long
        return _json(ApiError(e.status, e.reason).body(), e.status)


class _NoTexts(logging.Filter):
    """aiohttp quotes what it could not parse, and that may be a prompt: keep only where it failed."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        record.msg = f"request failed: {kind.__name__ if kind else record.levelname}"
        record.args, record.exc_info, record.exc_text = (), None, None
        return True


def _logger() -> logging.Logger:
    logger = logging.getLogger("antechamber.engine.http")
    logger.addFilter(_NoTexts())
    return logger


async def serve(model: Model, name: str, socket: Path, limits: Limits) -> None:
    """Answer until SIGTERM or SIGINT; then let answers in the making end, briefly."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    runner = web.AppRunner(
        Server(model, name, limits).application(),
        access_log=None,
        handler_cancellation=True,  # a client that goes cancels its request
        logger=_logger(),
        shutdown_timeout=_DRAIN_S,
    )
    await runner.setup()
    try:
        await web.UnixSite(runner, str(socket)).start()
        log.event("engine.listening", model=name)
        await stop.wait()
    finally:
        await runner.cleanup()
        socket.unlink(missing_ok=True)
