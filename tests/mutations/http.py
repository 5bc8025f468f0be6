"""The requests themselves: methods, paths, queries and every header."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from antechamber.broker.messages import PREFIX
from mutations.model import RESOURCE, Flow, Good, Mutation, Sent

_METHODS = (
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "HEAD",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "PROPFIND",
    "get",
    "Get",
    "G",
    "GETGET",
    "G:T",
    "X" * 300,
)
_PATHS: dict[str, tuple[str, str]] = {
    "another tag": (RESOURCE[:-1] + "x", ""),
    "upper case": (RESOURCE.upper(), ""),
    "a slash more": (RESOURCE + "/", ""),
    "two slashes first": ("/" + RESOURCE, ""),
    "two slashes inside": (RESOURCE.replace("/default/", "//default/"), ""),
    "another prefix": (RESOURCE.replace("v0", "v1"), ""),
    "no prefix": (RESOURCE.removeprefix(PREFIX), ""),
    "a dot": (RESOURCE.replace("/default/", "/./default/"), ""),
    "two dots": (RESOURCE.replace("/default/", "/x/../default/"), ""),
    "out of the tree": (f"{PREFIX}/resource/../../../etc/passwd", ""),
    "an escaped slash": (RESOURCE.replace("default/", "default%2f"), ""),
    "escaped dots": (f"{PREFIX}/resource/%2e%2e/%2e%2e/master.key", ""),
    "an escaped letter": (RESOURCE[:-1] + "%6f", ""),
    "escaped twice": (RESOURCE[:-1] + "%256f", ""),
    "a bad escape": (RESOURCE[:-1] + "%zz", ""),
    "half an escape": (RESOURCE + "%", ""),
    "a NUL": (RESOURCE + "%00", ""),
    "a line feed": (RESOURCE + "%0a", ""),
    "a space": (RESOURCE + "%20", ""),
    "a raw space": (RESOURCE + " x", ""),
    "a semicolon": (RESOURCE + ";x", ""),
    "a backslash": (RESOURCE.replace("/default/", "\\default\\"), ""),
    "not UTF-8": (RESOURCE + "%ff", ""),
    "a full-width letter": (RESOURCE[:-1] + "%ef%bd%8f", ""),
    "two parts": (f"{PREFIX}/resource/default/model-key", ""),
    "four parts": (RESOURCE + "/x", ""),
    "one part": (f"{PREFIX}/resource/default", ""),
    "none": (f"{PREFIX}/resource/", ""),
    "no resource": (f"{PREFIX}/resource", ""),
    "a star": (f"{PREFIX}/resource/default/model-key/*", ""),
    "a URI of kbs": (f"{PREFIX}/resource/kbs:///default/model-key/demo", ""),
    "huge": (RESOURCE + "x" * 15_000, ""),
    "too huge": (RESOURCE + "x" * 20_000, ""),
    "only a slash": ("/", ""),
    "the asterisk": ("*", ""),
    "empty": ("", ""),
    "without its slash": (RESOURCE[1:], ""),
    "a fragment": (RESOURCE + "#x", ""),
    "SQL": (RESOURCE + "%27%20OR%201=1", ""),
    "another resource": (f"{PREFIX}/resource/default/other/1", ""),
    "a wildcard": (f"{PREFIX}/resource/%25/%25/%25", ""),
    "the admin's": (f"{PREFIX}/resource-policy", ""),
    "policies": (f"{PREFIX}/attestation-policy", ""),
    "lease": (f"{PREFIX}/external/antechamber/lease", ""),
    "another plugin": (f"{PREFIX}/external/other/x", ""),
    "healthz below": (f"{PREFIX}/healthz", ""),
    "absolute": ("https://localhost" + RESOURCE, "RFC 9112, 3.2.2: the absolute form of the same"),
    "absolute, elsewhere": ("https://example.org/", ""),
}
_QUERY = "no query is read"
_QUERIES = ("?", "?x=1", "?path=default/other/1", "?a=" + "x" * 5000, "?%zz", "?nonce=00", "?&&&", "?x=1?y=2")
_HEADERS: dict[str, tuple[str, ...]] = {
    "Host": ("example.org", "localhost, example.org", "a" * 5000, "127.0.0.1:1", "[::1]"),
    "Accept": ("", "text/plain", "*/*;q=0", "x" * 9000),
    "Content-Type": (
        "",
        "text/plain",
        "application/json; charset=utf-16",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
    ),
    "Content-Encoding": ("gzip", "deflate", "br", "identity"),
    "Connection": ("close", "upgrade", "keep-alive, x"),
    "Upgrade": ("h2c", "websocket"),
    "Expect": ("100-continue", "x"),
    "Range": ("bytes=0-0", "x"),
    "If-None-Match": ("*",),
    "X-Forwarded-For": ("203.0.113.1", "x" * 9000),
    "X-HTTP-Method-Override": ("DELETE",),
    "Authorization": ("Bearer", "Bearer x", "Bearer x.y.z", "Basic eDp4", "x" * 9000),
    "Kbs-Session-Id": ("x",),
    "X-Unknown": ("", "x"),
}
_FRAMES: dict[str, tuple[str, ...]] = {
    "Content-Length": ("-1", "0x10", "1e3", "", "abc", "+1", "1, 2", "99999999999999999999"),
    "Transfer-Encoding": ("identity", "gzip", "chunked, gzip", "xchunked", " chunked\t,x", "chunked"),
}
_READS = {"Content-Encoding", "Expect", "Upgrade", "Connection", "Authorization"}  # what may be refused, or not
_IGNORED = "the credential and the path are the same, and nothing reads this header"


def mutations() -> Iterator[Mutation]:
    goods: dict[Flow, Callable[[Good], Sent]] = {
        "release": Good.release,
        "attest": Good.attest,
        "admin": Good.upload,
        "auth": Good.auth,
    }
    for flow, good_of in goods.items():
        for method in _METHODS:
            if method != {"release": "GET"}.get(flow, "POST") and not (flow == "admin" and method == "DELETE"):
                yield _request(
                    f"http/{flow}/method: {method[:20]}", flow, good_of, lambda s, m=method: replace(s, method=m)
                )
        for name, value in (("HTTP/1.0", "1.0"), ("HTTP/0.9", "0.9"), ("HTTP/2.0", "2.0"), ("HTTP/1.9", "1.9")):
            yield _request(
                f"http/{flow}/version: {name}", flow, good_of, lambda s, v=value: s.having("!version", v), _either
            )
        for header, values in _HEADERS.items():
            for value in (*values, None):
                what = "twice" if value is None else repr(value[:40])
                yield _request(
                    f"http/{flow}/{header}: {what}",
                    flow,
                    good_of,
                    lambda s, h=header, v=value: _with(s, h, v),
                    _either if flow != "admin" else _any,
                )
        for header, values in _FRAMES.items():
            for value in values:
                yield _request(
                    f"http/{flow}/{header}: {value!r}",
                    flow,
                    good_of,
                    lambda s, h=header, v=value: s.having(h, v),
                    _framed,
                )
        for name in ("Host", "Content-Type", "Accept"):
            yield _request(
                f"http/{flow}/{name}: left out",
                flow,
                good_of,
                lambda s, n=name: s.having(n),
                _either if flow != "admin" else _any,
            )
    for name, (path, neutral) in _PATHS.items():
        yield _request(f"http/path: {name}", "release", Good.release, lambda s, p=path: replace(s, target=p), neutral)
        yield _request(
            f"http/path by token: {name}",
            "release",
            Good.release_by_token,
            lambda s, p=path: replace(s, target=p),
            neutral,
        )
    for query in _QUERIES:
        yield _request(
            f"http/query: {query[:30]}",
            "release",
            Good.release,
            lambda s, q=query: replace(s, target=s.target + q),
            _QUERY,
        )
    yield from _cookies()


def _request(
    name: str, flow: Flow, good_of: Callable[[Good], Sent], change: Callable[[Sent], Sent], neutral: object = ""
) -> Mutation:
    return Mutation(name, flow, lambda good: change(good_of(good)), neutral)  # type: ignore[arg-type]


def _with(sent: Sent, header: str, value: str | None) -> Sent:
    if value is not None:
        return sent.having(header, value)
    own = [v for n, v in sent.headers if n == header] or ["x"]
    return sent.having(header, *own, *own)


def _either(good: Good, sent: Sent) -> bool | None:
    """The credential, path and body are as they were: the key may go out, or the request be refused for its form."""
    return None


_any = _framed = _either


def _cookies() -> Iterator[Mutation]:
    def cookie(name: str, change: Callable[[str], str], neutral: object = "") -> Iterator[Mutation]:
        yield _request(
            f"http/cookie: {name}", "release", Good.release, lambda s: s.having("Cookie", change(_own(s))), neutral
        )
        yield _request(
            f"http/cookie of /attest: {name}",
            "attest",
            Good.attest,
            lambda s: s.having("Cookie", change(_own(s))),
            neutral,
        )

    for at in range(112):
        yield from cookie(
            f"digit {at}", lambda c, a=at: c.partition("=")[0] + "=" + _next_digit(c.partition("=")[2], a)
        )
    for name, change in {
        "empty": lambda c: "",
        "no value": lambda c: c.partition("=")[0] + "=",
        "only its value": lambda c: c.partition("=")[2],
        "another name": lambda c: "session=" + c.partition("=")[2],
        "its name in upper case": lambda c: c.partition("=")[0].upper() + "=" + c.partition("=")[2],
        "its value in upper case": lambda c: c.partition("=")[0] + "=" + c.partition("=")[2].upper(),
        "cut": lambda c: c[:-1],
        "longer": lambda c: c + "0",
        "after a space": lambda c: c.replace("=", "= 0"),
        "as zero": lambda c: c.partition("=")[0] + "=" + "0" * 112,
        "huge": lambda c: c + "0" * 9000,
        "with a NUL": lambda c: c + "%00",
        "two halves": lambda c: c[:60] + ";" + c[60:],
        "as JSON": lambda c: '{"a":1}',
    }.items():
        yield from cookie(name, change)
    for name, change in {
        "in quotes": lambda c: c.replace("=", '="') + '"',
        "and another one": lambda c: c + "; a=b",
        "after another one": lambda c: "a=b; " + c,
        "twice": lambda c: f"{c}; {c}",
        "and a wrong one": lambda c: c + "; " + c.partition("=")[0] + "=00",
        "after a wrong one": lambda c: c.partition("=")[0] + "=00; " + c,
        "with a path": lambda c: c + "; Path=/",
    }.items():
        yield from cookie(name, change, _either)
    yield Mutation("http/cookie: left out", "release", lambda good: good.release().having("Cookie"))
    yield Mutation(
        "http/cookie: of a session that is not attested",
        "release",
        lambda good: good.release().having("Cookie", good.cookie),
    )
    yield Mutation("http/cookie of /attest: left out", "attest", lambda good: good.attest().having("Cookie"))


def _own(sent: Sent) -> str:
    return next(v for n, v in sent.headers if n == "Cookie")


def _next_digit(value: str, at: int) -> str:
    return value[:at] + f"{(int(value[at], 16) + 1) % 16:x}" + value[at + 1 :]
