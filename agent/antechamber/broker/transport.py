"""Bounded HTTPS to one broker over one kept-alive connection. The only importer of requests."""

import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from antechamber.errors import BrokerUnreachable, ConfigError

if TYPE_CHECKING:
    import requests

_CHUNK = 64 << 10  # bytes
_AGENT = "antechamber"


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer. Header names are lower case; `cookies` are whole Set-Cookie values."""

    status: int
    headers: Mapping[str, str]
    cookies: tuple[str, ...]
    body: bytes


def _unreachable(code: str, detail: str) -> BrokerUnreachable:
    hints = {
        "broker.tls": "set broker.ca to the broker's own CA, and reach it by a name in its certificate",
        "broker.protocol": "the broker must speak KBS protocol 0.4.0 over HTTPS",
        "broker.size": "the broker must send answers within the protocol's sizes",
    }
    return BrokerUnreachable(code, detail, hint=hints.get(code, "is the broker running, and its address right?"))


class _Watchdog:
    """Shuts the connection down at a deadline: read timeouts alone let a peer drip bytes for ever.

    Resolving a name is bounded by the resolver's own timeouts, not by this.
    """

    def __init__(self) -> None:
        self.socket: Any = None  # of the connection in use; set when it connects
        self.fired = False

    def start(self, deadline_s: float) -> threading.Timer:
        self.fired = False
        timer = threading.Timer(deadline_s, self._fire)
        timer.daemon = True
        timer.start()
        return timer

    def _fire(self) -> None:
        self.fired = True
        if self.socket is not None:
            try:
                self.socket.shutdown(2)
            except OSError:  # already gone
                return


class Transport:
    """HTTPS to `url`, whose certificate must chain to the CA in the file `ca`, and to no other.

    `timeout_s` bounds the connect, each read, and, doubled, the whole exchange. No proxies, no redirects, no netrc, no
    environment. Not safe for threads. Raises ConfigError `config.value` for a URL that does not parse.
    """

    def __init__(self, url: str, ca: str, timeout_s: float) -> None:
        self.base, self._ca, self._timeout_s = url.rstrip("/"), ca, timeout_s
        self.path = _path(self.base)
        self._watchdog = _Watchdog()
        self._session: requests.Session | None = None

    def exchange(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int = 1 << 20,
    ) -> Answer:
        """One request, one answer of at most `limit` bytes.

        Raises BrokerUnreachable `broker.unreachable`, `broker.tls`, `broker.protocol`, `broker.size`.
        """
        import requests  # noqa: PLC0415  # 0.2 s: not before it is needed
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        sent = {"User-Agent": _AGENT, "Accept-Encoding": "identity", **(headers or {})}
        timer = self._watchdog.start(2 * self._timeout_s)
        try:
            answer = _answer(self._request(method, path, body, sent), limit)
        except (requests.RequestException, HTTPError, OSError) as e:
            raise self._translate(e) from e
        except BrokerUnreachable as e:
            self.close()  # the rest of that answer is not read as the next one
            raise (self._late() if self._watchdog.fired else e) from e.__cause__
        finally:
            timer.cancel()
        if self._watchdog.fired:  # http.client takes a connection's end for the end of the headers
            self.close()
            raise self._late()
        return answer

    def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> "requests.Response":
        if self._session is None:
            self._session = _session(self._ca, self._watchdog)
        return self._session.request(
            method,
            self.base + path,
            data=body,
            headers=headers,
            timeout=(self._timeout_s, self._timeout_s),
            allow_redirects=False,
            stream=True,
        )

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _late(self) -> BrokerUnreachable:
        return _unreachable("broker.unreachable", f"{self.base}: no whole answer within {2 * self._timeout_s:g} s")

    def _translate(self, error: Exception) -> BrokerUnreachable:
        self.close()  # whatever state the connection is in, it is not used again
        if self._watchdog.fired:
            return self._late()
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return _unreachable("broker.tls", f"{self.base}: {cause.verify_message or cause.reason}")
        for cause in causes:
            if isinstance(cause, ssl.SSLError):
                return _unreachable("broker.tls", f"{self.base}: {cause.reason or cause}"[:300])
        names = {type(c).__name__ for c in causes}
        if names & {"BadStatusLine", "LineTooLong", "InvalidHeader", "IncompleteRead", "HTTPException"}:
            return _unreachable("broker.protocol", _said(causes))
        return _unreachable("broker.unreachable", f"{self.base}: {_said(causes)}")


def _path(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:  # `https://[`, or a port that is no number
        usable = False
    if not usable:
        raise ConfigError("config.value", f"broker.url is {url[:200]!r}", hint="use https://host or https://host:port")
    return parts.path


def _said(causes: list[BaseException]) -> str:
    """The innermost error: the outer ones repeat it among addresses of objects."""
    inner = causes[-1]
    return f"{type(inner).__name__}: {str(inner)[:200]}"


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    todo: list[object] = [error]
    while todo and len(found) < 16:
        current = todo.pop(0)
        if isinstance(current, BaseException) and current not in found:
            found.append(current)
            todo += [getattr(current, "reason", None), current.__cause__, current.__context__, *current.args]
    return found


def _answer(response: "requests.Response", limit: int) -> Answer:
    if encoding := response.headers.get("Content-Encoding"):
        raise _unreachable("broker.protocol", f"Content-Encoding {encoding[:32]!r} was not asked for")
    if not (
        "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
    ):  # where it ends would be anyone's guess
        raise _unreachable("broker.protocol", "an answer without Content-Length or Transfer-Encoding")
    body = bytearray()
    for chunk in response.raw.stream(_CHUNK, decode_content=False):
        body += chunk
        if len(body) > limit:
            raise _unreachable("broker.size", f"an answer of over {limit} bytes")
    response.raw.release_conn()
    headers = {name.lower(): value for name, value in response.headers.items()}
    cookies = tuple(response.raw.headers.getlist("set-cookie"))
    return Answer(response.status_code, headers, cookies, bytes(body))


def _context(ca: str) -> ssl.SSLContext:
    """TLS 1.2 at least, 1.3 where the broker has it; names verified; one root."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=ca)
    except OSError as e:  # ssl.SSLError is one
        raise ConfigError("config.file", f"broker.ca {ca}: {e.strerror or e}", hint="a PEM file with the CA") from e
    return context


def _session(ca: str, watchdog: _Watchdog) -> "requests.Session":
    import requests  # noqa: PLC0415
    from requests.adapters import HTTPAdapter  # noqa: PLC0415
    from requests.cookies import RequestsCookieJar  # noqa: PLC0415
    from urllib3.connection import HTTPSConnection  # noqa: PLC0415

    class Connection(HTTPSConnection):
        """Lends its socket to the watchdog: before the TLS handshake, and after."""

        def _new_conn(self) -> Any:
            watchdog.socket = super()._new_conn()
            return watchdog.socket

        def connect(self) -> None:
            super().connect()
            watchdog.socket = self.sock

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, ssl_context=_context(ca), **kwargs)

        def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
            pool = super().get_connection_with_tls_context(*args, **kwargs)
            pool.ConnectionCls = Connection  # type: ignore[attr-defined]  # the base class's type is wider
            return pool

    session = requests.Session()
    session.trust_env = False
    session.verify = ca
    session.adapters.clear()
    session.mount("https://", Adapter(pool_connections=1, pool_maxsize=1, max_retries=0))
    session.cookies = _no_cookies(RequestsCookieJar())  # `kbs` keeps the one cookie itself
    return session


def _no_cookies(jar: Any) -> Any:
    from http.cookiejar import DefaultCookiePolicy  # noqa: PLC0415

    jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return jar
