"""The gateway's end of the agent's socket: the handover once, then questions.

One request per connection: a line of JSON out, a line of JSON back, the end of the stream.
"""

import asyncio
import fcntl
import hashlib
import json
import os
import re
import socket
import struct
from dataclasses import dataclass
from typing import Any

from antechamber import strict
from antechamber.errors import AgentError, HardwareUnavailable, PlatformUnfit, is_code
from antechamber.evidence.composite import decode
from antechamber.gateway.clients import CLIENT_SHARE

MAX_ANSWER = 8 << 20  # bytes
CONNECT_S = 10.0
HANDOVER_S = 7260.0  # the agent answers when the engine is admitted; if it dies first, the link ends
ASK_S = 5.0
MAX_AGE_S = 1 << 32
_MAX_HINT = 400  # characters
BUNDLE_S = 60.0  # a quote may take seconds, and others may be first
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_HINT = "start the gateway after `antechamber boot` has finished, as the same user or under its unit"


class AgentRefused(AgentError):
    """The agent answered, and the answer is no: its own code."""

    exit_status = 75


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the agent hands over, beside the key.

    One client (an IPv4 address or an IPv6 /64) has at most one part in `client_share` of the connections and of the
    memory for bodies. A proxy in front makes all its clients one: with a share of 1, one client may have everything.
    """

    listen: str  # address:port
    certificate: str  # PEM chain, leaf first
    model: str
    upstream: str  # path of the engine's unix socket
    max_body_bytes: int
    max_connections: int
    verdict_age_s: int
    nonces_per_minute: int
    client_share: int = CLIENT_SHARE

    def __post_init__(self) -> None:
        counts = (self.max_body_bytes, self.max_connections, self.verdict_age_s, self.nonces_per_minute)
        if min(*counts, self.client_share) < 1 or not self.upstream.startswith("/"):
            raise PlatformUnfit("gateway.handover", "a limit is below 1 or the upstream is no path", hint=_HINT)


@dataclass(frozen=True, slots=True)
class Handover:
    """`key_fd` is a sealed memfd with the TLS private key, PKCS#8 PEM. Whoever loads the key closes it."""

    terms: Terms
    key_fd: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The watch's last verdict on this guest. `quote` is standard base64, without padding bytes of the kernel's."""

    good: bool
    age_s: float  # when the agent answered
    quote: str
    quote_sha256: str
    short: dict[str, Any]  # body of `GET /attestation`, passed on as it is


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """`text` is the exact JSON to serve."""

    text: bytes
    quote_sha256: str


def handover(path: str) -> Handover:
    """Take terms and key from the agent. Raises PlatformUnfit `gateway.handover`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(CONNECT_S)
            link.connect(path)
            _require_agent(link)
            link.settimeout(HANDOVER_S)
            link.sendall(_line("gateway"))
            answer, fds = _receive(link)
    except OSError as e:
        raise HardwareUnavailable("handover.none", f"no agent answers at {path}: {e.strerror or e}", hint=_HINT) from e
    try:
        return Handover(_terms(answer), _sealed(fds))
    except AgentError:
        for fd in fds:
            os.close(fd)
        raise


def _require_agent(link: socket.socket) -> None:
    """Only root or our own user may play the agent. Source: unix(7), SO_PEERCRED."""
    _, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (0, os.getuid()):
        raise PlatformUnfit("gateway.handover", f"the socket belongs to uid {uid}", hint=_HINT)


def _receive(link: socket.socket) -> tuple[bytes, list[int]]:
    answer, fds, *_ = socket.recv_fds(link, 1 << 16, 2, socket.MSG_CMSG_CLOEXEC)
    while answer and b"\n" not in answer and len(answer) <= MAX_ANSWER:
        if not (more := link.recv(1 << 16)):
            break
        answer += more
    return answer, list(fds)


def _terms(answer: bytes) -> Terms:
    try:
        value = strict.load_json(answer, error=PlatformUnfit, family="handover", limit=MAX_ANSWER)
        if not isinstance(value, dict) or value.pop("ok", None) is not True:
            why = value.get("code") if isinstance(value, dict) else None
            raise PlatformUnfit("gateway.handover", f"the agent refuses: {why or 'no reason given'}", hint=_HINT)
        return strict.build(value, Terms, error=PlatformUnfit, family="handover")
    except PlatformUnfit as e:
        raise PlatformUnfit("gateway.handover", e.detail, hint=_HINT) from e


def _sealed(fds: list[int]) -> int:
    """The one descriptor; nobody can still change what is behind it. Source: memfd_create(2)."""
    if len(fds) != 1:
        raise PlatformUnfit("gateway.handover", f"{len(fds)} descriptors, not 1", hint=_HINT)
    try:
        seals = fcntl.fcntl(fds[0], fcntl.F_GET_SEALS)
    except OSError as e:
        raise PlatformUnfit("gateway.handover", "the key is not in a memfd", hint=_HINT) from e
    if seals & _SEALS != _SEALS:
        raise PlatformUnfit("gateway.handover", f"the memfd's seals are {seals:#x}", hint=_HINT)
    return fds[0]


def _line(op: str, **fields: str) -> bytes:
    return json.dumps({"op": op, **fields}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class AgentLink:
    """Questions to the running agent. Each raises AgentRefused, or HardwareUnavailable `agent.unreachable`."""

    path: str

    async def verdict(self) -> Verdict:
        return _verdict(await self._ask(_line("verdict"), ASK_S))

    async def bundle(self, nonce: str) -> StoredBundle:
        """A fresh bundle over a nonce (hex). Takes seconds."""
        return _bundle(await self._ask(_line("bundle", nonce=nonce), BUNDLE_S))

    async def stored(self, sha256: str) -> StoredBundle:
        """The bundle whose quote has that digest (hex). Raises AgentRefused `bundle.unknown`."""
        found = _bundle(await self._ask(_line("stored", sha256=sha256), ASK_S))
        if found.quote_sha256 != sha256:
            raise _unreadable("the stored bundle is another one")
        return found

    async def leash(self) -> None:
        """Return when the agent ends, however it ends."""
        try:
            reader, writer = await asyncio.open_unix_connection(self.path)
            try:
                writer.write(_line("leash"))
                await reader.read()
            finally:
                writer.close()
        except OSError:
            return

    async def listening(self) -> None:
        await self._ask(_line("listening"), ASK_S)

    async def _ask(self, line: bytes, deadline_s: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(deadline_s):
                answer = await self._exchange(line)
        except (OSError, ValueError, TimeoutError) as e:
            raise HardwareUnavailable("agent.unreachable", type(e).__name__, hint="see the agent's journal") from e
        return parse(answer)

    async def _exchange(self, line: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=MAX_ANSWER)
        try:
            writer.write(line)
            await writer.drain()
            return await reader.readline()
        finally:
            writer.close()


def parse(answer: bytes) -> dict[str, Any]:
    """The agent's answer. Raises HardwareUnavailable `agent.json`, `agent.answer`, or AgentRefused."""
    value = strict.load_json(answer, error=HardwareUnavailable, family="agent", limit=MAX_ANSWER)
    if not isinstance(value, dict) or not isinstance(value.get("ok"), bool):
        raise _unreadable("no answer to the question")
    if not value["ok"]:
        code, detail, hint = (str(value.get(k, "")) for k in ("code", "detail", "hint"))
        if not is_code(code):
            raise _unreadable("a refusal without a code")
        raise AgentRefused(code, detail, hint=hint[:_MAX_HINT])
    return value


def _verdict(value: dict[str, Any]) -> Verdict:
    good, age, quote, short = (value.get(k) for k in ("good", "age_s", "quote", "short"))
    if not isinstance(good, bool) or not isinstance(age, (int, float)) or isinstance(age, bool):
        raise _unreadable("the verdict has no outcome or no age")
    if not 0 <= age <= MAX_AGE_S:  # NaN is not either
        raise _unreadable("the verdict's age is no age")
    if not isinstance(short, dict) or not isinstance(quote, str):
        raise _unreadable("the verdict has no quote or no short form")
    digest = hashlib.sha256(decode(quote, 128 << 10)).hexdigest()  # a header's value: base64 and nothing else
    if value.get("quote_sha256") != digest:
        raise _unreadable("the verdict's digest is not its quote's")
    return Verdict(good, float(age), quote, digest, short)


def _bundle(value: dict[str, Any]) -> StoredBundle:
    text, digest = value.get("bundle"), value.get("sha256")
    if not isinstance(text, str) or not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise _unreadable("no bundle, or none with a digest")
    return StoredBundle(text.encode(), digest)


def _unreadable(detail: str) -> HardwareUnavailable:
    return HardwareUnavailable("agent.answer", detail, hint="run agent and gateway of one version")
