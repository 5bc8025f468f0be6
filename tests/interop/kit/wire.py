"""Plain HTTP to a KBS, and what came back: no cookie jar, no redirects, nothing hidden."""

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PREFIX = "/kbs/v0"
COOKIE = "kbs-session-id"
ERRORS = "https://github.com/confidential-containers/kbs/errors/"


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    def json(self) -> Any:
        """Raises ValueError."""
        return json.loads(self.body)

    def error(self) -> tuple[str, str]:
        """Variant and detail of the protocol's error object, or two empty texts."""
        try:
            said = self.json()
            return str(said["type"]).removeprefix(ERRORS), str(said["detail"])
        except (ValueError, KeyError, TypeError):
            return "", ""

    def cookie(self) -> str | None:
        """The session cookie as a Cookie header has it."""
        pair = (self.header("set-cookie") or "").partition(";")[0].strip()
        return pair if pair.startswith(COOKIE + "=") else None

    def __str__(self) -> str:
        variant, detail = self.error()
        return f"{self.status} {variant}: {detail}" if variant else f"{self.status}, {len(self.body)} bytes"


class Wire:
    """One connection a request. `ca` is a PEM file; without it `https` uses the system's roots."""

    def __init__(self, url: str, ca: str | None = None, timeout_s: float = 60) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http or https URL: {url[:200]}")
        self.host, self.port, self.base = parts.hostname, parts.port, parts.path.rstrip("/")
        if ca is not None and not Path(ca).is_file():
            raise ValueError(f"--ca {ca[:200]} is no file")  # OpenSSL's own words do not name it
        self.tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
        self.timeout_s = timeout_s

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Raises OSError, http.client.HTTPException."""
        connection: http.client.HTTPConnection
        if self.tls is not None:
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout_s, context=self.tls)
        else:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            connection.request(method, self.base + path, body, dict(headers or {}))
            answer = connection.getresponse()
            found = tuple((name.lower(), value) for name, value in answer.getheaders())
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()
