"""The embedded broker over HTTPS: KBS protocol 0.4.0 and our plugin paths. Every error is its error object.

401 is a verdict on the guest, which ends it. What says nothing of the guest (a full table, unusable rules, a fault of
ours) is 503: a guest then goes on for as long as its last good verdict carries it, and no stranger ends one.
"""

import asyncio
import json
import logging
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from functools import partial
from sqlite3 import Error as SqliteError
from typing import ParamSpec, TypeVar

from aiohttp import web

from antechamber import log
from antechamber.broker.authority import MAX_CSR
from antechamber.broker.decisions import Broker, Credentials, NotFound, Trail
from antechamber.broker.heads import Heads
from antechamber.broker.listener import Listener, open_sockets, raise_descriptors
from antechamber.broker.messages import (
    COOKIE,
    MAX_ATTESTATION,
    MAX_REQUEST,
    PREFIX,
    Challenge,
    ErrorInformation,
    build_token,
    refuse_path,
)
from antechamber.broker.sessions import Session, origin
from antechamber.broker.settings import parse_listen
from antechamber.broker.store import MAX_RESOURCE
from antechamber.broker.wire import expect, protocols
from antechamber.errors import AgentError, BrokerDenied, ConfigError, MalformedEvidence

P = ParamSpec("P")
R = TypeVar("R")
BODY_TIMEOUT_S = 60.0
RETRY_S = 10
MAX_IN_FLIGHT = 128 << 20  # bytes of all bodies until they are decided: sessions are free, so memory must not be
MAX_IN_FLIGHT_PER_PEER = 32 << 20
MAX_VERIFYING = 4  # at once
_TRAIL = web.RequestKey("trail", Trail)
_HELD = web.RequestKey("held", int)
_JSON = "application/json"
_NO_VERDICT = frozenset({"broker.busy", "broker.fault", "session.full"})
_ASKED_WRONGLY = frozenset({"collateral.nonce", "broker.resource-size"})  # in families that are ours otherwise

# A refusal's family, or its whole code, to the protocol's variant and the words that its clients know.
_VARIANTS = {
    "session.none": ("TokenNotFound", "Attestation Token not found"),
    "session.unknown": ("TokenNotFound", "Attestation Token not found"),
    "session.unattested": ("TokenNotFound", "Attestation Token not found"),
    "session": ("TokenVerifierError", "Token Verifier error"),
    "ear": ("TokenVerifierError", "Token Verifier error"),
    "rules": ("PolicyDeny", "Access denied by policy"),
    "appraisal": ("PolicyDeny", "Access denied by policy"),
    "policy": ("PolicyEngineError", "Policy engine error"),
}


def build_app(broker: Broker, heads: Heads) -> web.Application:
    """Routes. Unknown paths and methods are 404, as the protocol has it."""
    server = _Server(broker, heads)
    app = web.Application(middlewares=[server.refusals], client_max_size=MAX_ATTESTATION)
    routes = [
        web.get("/healthz", server.healthz),
        web.post(PREFIX + "/auth", server.auth),
        web.post(PREFIX + "/attest", server.attest),
        web.get(PREFIX + "/resource/{path:.*}", server.release),
        web.post(PREFIX + "/resource/{path:.*}", server.put),
        web.delete(PREFIX + "/resource/{path:.*}", server.delete),
        web.put(PREFIX + "/resource/{path:.*}", server.no_such_method),
        web.post(PREFIX + "/attestation-policy", server.policy),
        web.post(PREFIX + "/resource-policy", server.policy),
        web.get(PREFIX + "/resource-policy", server.policies),
        web.post(PREFIX + "/reference-value", server.policy),
        web.get(PREFIX + "/reference-value/{id:.*}", server.policy),
        web.get(PREFIX + "/external/antechamber/collateral", server.collateral),
        web.post(PREFIX + "/external/antechamber/certificate", server.certify),
        web.get(PREFIX + "/external/antechamber/lease", server.lease),
    ]  # fmt: skip
    for route in routes:  # not `add_get`, which adds HEAD too: that would release, and spend, for no one
        app.router.add_route(route.method, route.path, route.handler, expect_handler=expect)
    return app


class _Budget:
    """Bytes of bodies in memory, of all and of each address. The event loop's thread alone counts.

    Where all of them are too many, the address with most of them gives way: a few that send slowly keep nobody out.
    """

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._coming: dict[int, web.Request] = {}  # by identity: whose bodies are not whole

    def take(self, request: web.Request, size: int) -> None:
        """Raises BrokerDenied `broker.busy`."""
        peer = origin(request.remote or "")
        self._coming[id(request)] = request
        self._held[peer] += size
        request[_HELD] = request.get(_HELD, 0) + size
        if self._held[peer] > MAX_IN_FLIGHT_PER_PEER:
            raise _busy()
        while self._held.total() > MAX_IN_FLIGHT:
            most = max(self._coming.values(), key=lambda one: self._held[origin(one.remote or "")])
            if origin(most.remote or "") == peer:
                raise _busy()
            self.give_back(most)
            most.content.set_exception(_busy())

    def whole(self, request: web.Request) -> None:
        """It gives way to none any more: it is being decided."""
        self._coming.pop(id(request), None)

    def give_back(self, request: web.Request) -> None:
        self.whole(request)
        if size := request.get(_HELD, 0):
            peer = origin(request.remote or "")
            self._held[peer] -= size
            if not self._held[peer]:
                del self._held[peer]
            request[_HELD] = 0


def _busy() -> BrokerDenied:
    return BrokerDenied("broker.busy", "too many bodies at once", hint="try again")


class _Server:
    """Endpoints. Decisions block, and are taken in threads."""

    def __init__(self, broker: Broker, heads: Heads) -> None:
        self._broker, self._heads = broker, heads
        self._budget = _Budget()
        self._verifying = asyncio.Semaphore(MAX_VERIFYING)

    @web.middleware
    async def refusals(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Turn refusals into the protocol's error object, and record them; bound what is held meanwhile."""
        self._heads.begin(request)
        answer = await self._answer(request, handler)
        if self._heads.is_last(request):
            answer.force_close()
        return answer

    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        request[_TRAIL] = Trail(request.remote or "", f"{request.method} {request.path}"[:300])
        try:
            return await handler(request)
        except AgentError as e:
            return await self._refused(request, e)
        except web.HTTPException as e:
            if e.status not in (404, 405):
                return _error(e.status, ErrorInformation("PluginInternalError", e.reason))
            plugin = request.path.removeprefix(PREFIX).strip("/").partition("/")[0]
            return _error(404, ErrorInformation("PluginNotFound", f"Plugin {plugin[:64]} not found"))
        except Exception as e:  # noqa: BLE001  # a fault of ours must reach no guest as a verdict on it
            name = type(e).__name__  # never its text, which may hold what a client sent
            log.event("broker.failed", level=logging.ERROR, path=request.path[:300], error=name)
            return await self._refused(request, BrokerDenied("broker.fault", name, hint="read the broker's log"))
        finally:
            self._budget.give_back(request)

    async def _refused(self, request: web.Request, error: AgentError) -> web.StreamResponse:
        try:
            await _in_thread(self._broker.refused, request[_TRAIL], error)
        except SqliteError as e:  # nothing is released: the answer may go without its record
            log.event("broker.unrecorded", level=logging.ERROR, code=error.code, error=type(e).__name__)
        status = _status(error)
        if status == 503:  # the code alone: details of our own files are for the audit
            said = ErrorInformation("PluginInternalError", f"Plugin internal error: {error.code}")
            return _error(503, said, {"Retry-After": str(RETRY_S)})
        return _error(status, _said(request.path, error))

    async def healthz(self, request: web.Request) -> web.Response:
        return web.Response()

    async def auth(self, request: web.Request) -> web.Response:
        session = await _in_thread(self._broker.auth, request[_TRAIL], await self._read(request, MAX_REQUEST))
        return _with_cookie(session, Challenge(session.nonce).build())

    async def attest(self, request: web.Request) -> web.Response:
        trail, cookie = request[_TRAIL], request.cookies.get(COOKIE)
        session = self._broker.session(trail, Credentials(cookie, None))  # before 8 MiB are read for nobody
        body = await self._read(request, MAX_ATTESTATION)
        async with self._verifying:
            token = await _in_thread(self._broker.attest, trail, cookie, body)
        return _with_cookie(session, build_token(token))

    async def release(self, request: web.Request) -> web.Response:
        path = _resource(request)
        request[_TRAIL].resource = path[:300]
        sealed = await _in_thread(self._broker.release, request[_TRAIL], _credentials(request), path)
        return web.Response(body=sealed, content_type=_JSON)

    async def put(self, request: web.Request) -> web.Response:
        path, bearer = _resource(request), _bearer(request)
        request[_TRAIL].resource = path[:300]
        self._broker.admins.require(bearer, self._broker.clock())  # before the body
        body = await self._read(request, MAX_RESOURCE)
        await _in_thread(self._broker.put, request[_TRAIL], bearer, path, body)
        return web.Response(content_type="text/xml")

    async def delete(self, request: web.Request) -> web.Response:
        path = _resource(request)
        request[_TRAIL].resource = path[:300]
        await _in_thread(self._broker.delete, request[_TRAIL], _bearer(request), path)
        return web.Response(content_type="text/xml")

    async def no_such_method(self, request: web.Request) -> web.Response:
        raise MalformedEvidence("kbs.method", f"{request.method} of a resource", hint="GET, POST or DELETE it")

    async def policies(self, request: web.Request) -> web.Response:
        """Names of the policies that are loaded: Trustee lists ids here."""
        self._broker.admins.require(_bearer(request), self._broker.clock())
        names = sorted(self._broker.loaded(request[_TRAIL]).rules.policies)
        return web.Response(body=json.dumps(names).encode(), content_type=_JSON)

    async def policy(self, request: web.Request) -> web.Response:
        """Policies and Reference Values are a file at this broker, reviewed like code: no request changes them."""
        self._broker.admins.require(_bearer(request), self._broker.clock())
        raise BrokerDenied("policy.file", "this broker's policy is its YAML file", hint="edit the file")

    async def collateral(self, request: web.Request) -> web.Response:
        broker = self._broker
        sealed = await _in_thread(broker.collateral.sealed, request.query.get("nonce", ""), broker.clock())
        return web.Response(body=sealed, content_type=_JSON)

    async def certify(self, request: web.Request) -> web.Response:
        body = await self._read(request, MAX_CSR)
        chain = await _in_thread(self._broker.certify, request[_TRAIL], _credentials(request), body)
        return web.Response(body=chain, content_type="text/plain")

    async def lease(self, request: web.Request) -> web.Response:
        lease = await _in_thread(self._broker.lease, request[_TRAIL], _credentials(request))
        return web.Response(body=lease, content_type=_JSON)

    async def _read(self, request: web.Request, limit: int) -> bytes:
        """The body, at most `limit` bytes, which count until the request is answered.

        Raises MalformedEvidence `kbs.size`, BrokerDenied `broker.busy`, TimeoutError.
        """
        body = bytearray()
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.content.iter_any():
                body += chunk
                self._budget.take(request, len(chunk))
                if len(body) > limit:
                    raise MalformedEvidence("kbs.size", f"a body of over {limit} bytes", hint="send less")
        self._budget.whole(request)
        return bytes(body)


async def _in_thread(decide: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return await asyncio.get_running_loop().run_in_executor(None, partial(decide, *args, **kwargs))


def _resource(request: web.Request) -> str:
    """The path of a resource, which has one spelling: no escapes, no URI, no fragment.

    Raises MalformedEvidence `kbs.path`.
    """
    path, url = request.match_info["path"], request.rel_url
    if url.raw_path != f"{PREFIX}/resource/{path}" or url.raw_fragment or path.startswith("kbs:"):
        refuse_path(path)
    return path


def _bearer(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _credentials(request: web.Request) -> Credentials:
    return Credentials(request.cookies.get(COOKIE), _bearer(request))


def _with_cookie(session: Session, body: bytes) -> web.Response:
    cookie = f"{COOKIE}={session.id}; Expires={formatdate(session.expires, usegmt=True)}"
    return web.Response(body=body, content_type=_JSON, headers={"Set-Cookie": cookie})


def _said(path: str, error: AgentError) -> ErrorInformation:
    """The error's own code and words, after those that clients of the protocol know."""
    cause = f"{error.code}: {error.detail}"
    if path == PREFIX + "/auth":
        cause = error.detail if error.code == "broker.version" else cause
        return ErrorInformation("AttestationError", f"Attestation error: RCAR handshake Auth failed: {cause}")
    if path == PREFIX + "/attest":
        return ErrorInformation("AttestationError", f"Attestation error: RCAR handshake Attest failed: {cause}")
    if error.code.startswith("admin."):
        return ErrorInformation("AdminAuthAccess", f"admin access denied for endpoint {path[:300]}: {cause}")
    if error.code == "policy.file" and path.startswith(PREFIX + "/reference-value"):
        return ErrorInformation("RvpsError", f"RVPS configuration failed: {cause}")
    known = _VARIANTS.get(error.code) or _VARIANTS.get(error.code.partition(".")[0])
    variant, words = known or ("PluginInternalError", "Plugin internal error")
    return ErrorInformation(variant, f"{words}: {cause}")


def _status(error: AgentError) -> int:
    if isinstance(error, NotFound):
        return 404
    # Whatever collateral refuses, the broker's own files do: its owner has to fetch others.
    ours = isinstance(error, ConfigError) or error.code.startswith("collateral.") or error.code in _NO_VERDICT
    return 503 if ours and error.code not in _ASKED_WRONGLY else 401


def _error(status: int, said: ErrorInformation, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=said.build(), content_type=_JSON, headers=headers)


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 at least; 1.3 with whoever has it. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


async def start(broker: Broker, listen: str, context: ssl.SSLContext) -> tuple[web.AppRunner, str]:
    """Listen; the runner to clean up, and the URL with the port that was taken. Raises OSError."""
    heads = Heads()
    app, listener = build_app(broker, heads), Listener(context, raise_descriptors(), heads)

    async def stop(_: web.Application) -> None:
        listener.close()

    app.on_shutdown.append(stop)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, port = parse_listen(listen)
    sockets = await open_sockets(host, port)
    if runner.server is None:
        raise OSError("the HTTP server did not start")
    listener.start(protocols(runner.server), sockets)
    taken = sockets[0].getsockname()[1]
    return runner, f"https://{f'[{host}]' if ':' in host else host}:{taken}"
