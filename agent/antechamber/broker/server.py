"""The embedded broker over HTTPS: KBS protocol 0.4.0 and our plugin paths. Every error is its error object."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import partial
from sqlite3 import Error as SqliteError
from typing import ParamSpec, TypeVar

from aiohttp import web

from antechamber import log
from antechamber.broker.authority import MAX_CSR
from antechamber.broker.decisions import Broker, Credentials, NotFound, Trail
from antechamber.broker.messages import (
    COOKIE,
    MAX_ATTESTATION,
    MAX_REQUEST,
    PREFIX,
    Challenge,
    ErrorInformation,
    build_token,
)
from antechamber.broker.sessions import Session
from antechamber.broker.settings import parse_listen
from antechamber.broker.store import MAX_RESOURCE
from antechamber.errors import AgentError, BrokerDenied, MalformedEvidence

P = ParamSpec("P")
R = TypeVar("R")
MAX_FIELD = 512 << 10  # bytes of one header: tokens travel there
BODY_TIMEOUT_S = 60.0
MAX_IN_FLIGHT = 256 << 20  # bytes of all bodies being read: sessions are free, so memory must not be
_TRAIL = web.RequestKey("trail", Trail)
_JSON = "application/json"

# A refusal's family, or its whole code, to the protocol's variant and the words that its clients know.
_VARIANTS = {
    "session.none": ("TokenNotFound", "Attestation Token not found"),
    "session": ("TokenVerifierError", "Token Verifier error"),
    "ear": ("TokenVerifierError", "Token Verifier error"),
    "rules": ("PolicyDeny", "Access denied by policy"),
    "appraisal": ("PolicyDeny", "Access denied by policy"),
    "admin": ("AdminAuthAccess", "admin access denied"),
    "policy": ("PolicyEngineError", "Policy engine error"),
}


def build_app(broker: Broker) -> web.Application:
    """Routes. Unknown paths and methods are 404, as the protocol has it."""
    server = _Server(broker)
    app = web.Application(middlewares=[server.refusals], client_max_size=MAX_ATTESTATION)
    app.add_routes([
        web.get("/healthz", server.healthz),
        web.post(PREFIX + "/auth", server.auth),
        web.post(PREFIX + "/attest", server.attest),
        web.get(PREFIX + "/resource/{path:.*}", server.release),
        web.post(PREFIX + "/resource/{path:.*}", server.put),
        web.delete(PREFIX + "/resource/{path:.*}", server.delete),
        web.post(PREFIX + "/attestation-policy", server.policy),
        web.post(PREFIX + "/resource-policy", server.policy),
        web.get(PREFIX + "/external/antechamber/collateral", server.collateral),
        web.post(PREFIX + "/external/antechamber/certificate", server.certify),
        web.get(PREFIX + "/external/antechamber/lease", server.lease),
    ])  # fmt: skip
    return app


class _Server:
    """Endpoints. Decisions block, and are taken in threads."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._in_flight = 0  # bytes; the event loop's thread alone counts

    @web.middleware
    async def refusals(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Turn refusals into the protocol's error object, and record them."""
        request[_TRAIL] = Trail(request.remote or "", f"{request.method} {request.path}"[:300])
        try:
            return await handler(request)
        except AgentError as e:
            return await self._refused(request, e)
        except web.HTTPException as e:
            if e.status not in (404, 405):
                return _error(401, ErrorInformation("PluginInternalError", e.reason))
            plugin = request.path.removeprefix(PREFIX).strip("/").partition("/")[0]
            return _error(404, ErrorInformation("PluginNotFound", f"Plugin {plugin[:64]} not found"))
        except (SqliteError, TimeoutError) as e:
            log.event("broker.failed", path=request.path[:300], error=f"{type(e).__name__}: {e}")
            return _error(401, ErrorInformation("PluginInternalError", "Plugin internal error"))

    async def _refused(self, request: web.Request, error: AgentError) -> web.StreamResponse:
        try:
            await _in_thread(self._broker.refused, request[_TRAIL], error)
        except SqliteError as e:  # nothing is released: the answer may go without its record
            log.event("broker.failed", path=request.path[:300], error=f"{type(e).__name__}: {e}")
        return _error(404 if isinstance(error, NotFound) else 401, _said(request.path, error))

    async def healthz(self, request: web.Request) -> web.Response:
        return web.Response()

    async def auth(self, request: web.Request) -> web.Response:
        session = await _in_thread(self._broker.auth, await self._read(request, MAX_REQUEST))
        return _with_cookie(session, Challenge(session.nonce).build())

    async def attest(self, request: web.Request) -> web.Response:
        trail, cookie = request[_TRAIL], request.cookies.get(COOKIE)
        session = self._broker.session(trail, Credentials(cookie, None))  # before 16 MiB are read for nobody
        body = await self._read(request, MAX_ATTESTATION)
        token = await _in_thread(self._broker.attest, trail, cookie, body)
        return _with_cookie(session, build_token(token))

    async def release(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        request[_TRAIL].resource = path[:300]
        sealed = await _in_thread(self._broker.release, request[_TRAIL], _credentials(request), path)
        return web.Response(body=sealed, content_type=_JSON)

    async def put(self, request: web.Request) -> web.Response:
        path, bearer = request.match_info["path"], _bearer(request)
        request[_TRAIL].resource = path[:300]
        self._broker.admins.require(bearer, self._broker.clock())  # before the body
        body = await self._read(request, MAX_RESOURCE)
        await _in_thread(self._broker.put, request[_TRAIL], bearer, path, body)
        return web.Response(content_type="text/xml")

    async def delete(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        request[_TRAIL].resource = path[:300]
        await _in_thread(self._broker.delete, request[_TRAIL], _bearer(request), path)
        return web.Response(content_type="text/xml")

    async def policy(self, request: web.Request) -> web.Response:
        """Policies are a file at this broker, reviewed like code: no network request changes them."""
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
        """The body, at most `limit` bytes. Raises MalformedEvidence `kbs.size`, BrokerDenied `broker.busy`."""
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in request.content.iter_any():
                    body += chunk
                    self._in_flight += len(chunk)
                    if len(body) > limit:
                        raise MalformedEvidence("kbs.size", f"a body of over {limit} bytes", hint="send less")
                    if self._in_flight > MAX_IN_FLIGHT:
                        raise BrokerDenied("broker.busy", "too many bodies at once", hint="try again")
        finally:
            self._in_flight -= len(body)
        return bytes(body)


async def _in_thread(decide: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return await asyncio.get_running_loop().run_in_executor(None, partial(decide, *args, **kwargs))


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
    known = _VARIANTS.get(error.code) or _VARIANTS.get(error.code.partition(".")[0])
    variant, words = known or ("PluginInternalError", "Plugin internal error")
    return ErrorInformation(variant, f"{words}: {cause}")


def _error(status: int, said: ErrorInformation) -> web.Response:
    return web.Response(status=status, body=said.build(), content_type=_JSON)


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 at least; 1.3 with whoever has it. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


async def start(broker: Broker, listen: str, context: ssl.SSLContext) -> tuple[web.AppRunner, str]:
    """Listen; the runner to clean up, and the URL with the port that was taken. Raises OSError."""
    runner = web.AppRunner(
        build_app(broker), access_log=None, max_line_size=16 << 10, max_field_size=MAX_FIELD, auto_decompress=False
    )
    await runner.setup()
    host, port = parse_listen(listen)
    await web.TCPSite(runner, host, port, ssl_context=context).start()
    taken = runner.addresses[0][1]
    return runner, f"https://{f'[{host}]' if ':' in host else host}:{taken}"
