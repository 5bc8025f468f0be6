"""What the gateway says of the guest: the verdict beside each answer, bundles on demand."""

import asyncio
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from antechamber.errors import AgentError
from antechamber.gateway.agent_link import AgentLink, AgentRefused, StoredBundle, Verdict
from antechamber.gateway.answers import RequestRefused
from antechamber.gateway.clients import client_of

CACHE_S = 1.0  # the agent is asked at most this often
MAX_HEADER = 8190  # bytes of a header that every client tried takes
CONCURRENT_QUOTES = 2
CONCURRENT_LOOKUPS = 8
SHARE = 4  # clients at their limit that all others still get by
MAX_CLIENTS = 1024
_NONCE = re.compile(r"nonce=((?:[0-9a-fA-F]{2}){16,64})")
_LATER = {"retry-after": "5"}


@dataclass(frozen=True, slots=True)
class Seen:
    """A verdict and how old it is now, in seconds."""

    verdict: Verdict
    age_s: float

    @property
    def headers(self) -> dict[str, str]:
        return {"x-tdx-quote-sha256": self.verdict.quote_sha256}


class Verdicts:
    """The watch's verdict, asked for at most once a second, a failure to answer included."""

    def __init__(self, link: AgentLink, clock: Callable[[], float] = time.monotonic) -> None:
        self._link, self._clock, self._turn = link, clock, asyncio.Lock()
        self._last: tuple[float, Verdict] | None = None
        self._silent_until = -math.inf

    async def current(self) -> Seen:
        """Raises RequestRefused `attestation.unavailable`, with the last digest known."""
        async with self._turn:
            if self._last is None or self._clock() - self._last[0] > CACHE_S:
                await self._ask()
            if self._last is None:
                raise self._unavailable()
            asked, verdict = self._last
        return Seen(verdict, verdict.age_s + self._clock() - asked)

    async def _ask(self) -> None:
        if self._clock() < self._silent_until:
            raise self._unavailable()
        asked = self._clock()  # before the question, so that the age is never understated
        try:
            self._last = (asked, await self._link.verdict())
        except AgentError as e:
            self._silent_until = self._clock() + CACHE_S
            raise self._unavailable() from e

    def known(self) -> dict[str, str]:
        """For an answer that asks for no verdict: the last digest known."""
        return {} if self._last is None else Seen(self._last[1], 0).headers

    def _unavailable(self) -> RequestRefused:
        return RequestRefused(
            "attestation.unavailable",
            "no verdict on this guest",
            hint="try again later",
            status=503,
            headers=_LATER,
        )


def demanded(values: Sequence[str]) -> bool:
    """Whether `x-attestation: required` was sent. Raises RequestRefused `request.attestation` for any other value."""
    if not values:
        return False
    if list(values) != ["required"]:
        raise RequestRefused(
            "request.attestation", "x-attestation is not `required`", hint="send that, or nothing", status=400
        )
    return True


def admit(seen: Seen, demand: bool, limit_s: float) -> dict[str, str]:
    """Headers for an answer that this verdict lets through.

    A bad verdict serves nobody. A caller who demands attestation gets the quote, or no service: one that is too old
    or too long for a header is refused, not left out.

    Raises RequestRefused `attestation.failed`, `attestation.stale`, `attestation.quote-size`.
    """
    if not seen.verdict.good:
        raise RequestRefused(
            "attestation.failed", "the last verdict is not good", hint="do not use this guest", status=503
        )
    if not demand:
        return {}
    if not seen.age_s <= limit_s:
        detail = f"the last verdict is {seen.age_s:.0f} s old, the limit is {limit_s:.0f} s"
        raise RequestRefused("attestation.stale", detail, hint="try again later", status=503, headers=_LATER)
    if len(seen.verdict.quote) >= MAX_HEADER:
        detail = f"the quote has {len(seen.verdict.quote)} characters, a header takes less than {MAX_HEADER}"
        raise RequestRefused("attestation.quote-size", detail, hint="fetch the bundle by its digest", status=503)
    return {"x-tdx-quote": seen.verdict.quote}


class TokenBucket:
    """`per_minute` at once, and refilled at that rate."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity, self._rate, self._clock = per_minute, per_minute / 60, clock
        self._left, self._at = float(per_minute), clock()

    def take(self) -> None:
        """Raises RequestRefused `attestation.rate`."""
        now = self._clock()
        self._left = min(self._capacity, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            wait = str(math.ceil((1 - self._left) / self._rate))
            raise RequestRefused(
                "attestation.rate", "too many nonces", hint=f"wait {wait} s", status=429, headers={"retry-after": wait}
            )
        self._left -= 1


class NonceLimits:
    """`per_minute` nonces for each client, and `SHARE` times that for all: one client does not use up the others'.

    A client is an IPv4 address or an IPv6 /64. The table keeps the last `MAX_CLIENTS`; whom it forgets begins anew,
    which costs as many other addresses, and the limit for all stays.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._all = TokenBucket(SHARE * per_minute, clock)
        self._clients: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, peer: str) -> None:
        """Raises RequestRefused `attestation.rate`."""
        client = client_of(peer)
        bucket = self._clients.pop(client, None) or TokenBucket(self._per_minute, self._clock)
        self._clients[client] = bucket  # the last to be forgotten
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)
        bucket.take()
        self._all.take()


class Bundles:
    """Evidence for callers. Quotes are dear: rate-limited, few at a time, one for all who ask with the same nonce."""

    def __init__(self, link: AgentLink, nonces_per_minute: int) -> None:
        self._link, self._limits = link, NonceLimits(nonces_per_minute)
        self._quotes = asyncio.Semaphore(CONCURRENT_QUOTES)
        self._lookups = asyncio.Semaphore(CONCURRENT_LOOKUPS)
        self._running: dict[str, asyncio.Task[StoredBundle]] = {}

    async def fresh(self, query: str, peer: str) -> StoredBundle:
        """For a caller at the address `peer`.

        Raises RequestRefused `attestation.nonce`, `attestation.rate`, `attestation.unavailable`.
        """
        nonce = nonce_of(query)
        if (running := self._running.get(nonce)) is None:
            self._limits.take(peer)
            running = self._running[nonce] = asyncio.create_task(self._collect(nonce))
            running.add_done_callback(lambda done: self._forget(nonce, done))
        return await asyncio.shield(running)  # one caller who leaves does not take it from the others

    async def stored(self, sha256: str) -> StoredBundle:
        """Raises RequestRefused `attestation.unknown`, `attestation.unavailable`."""
        try:
            async with self._lookups:
                return await self._link.stored(sha256)
        except AgentRefused as e:
            raise RequestRefused(
                "attestation.unknown",
                "no bundle with that digest is kept",
                hint="save bundles when you get them",
                status=404,
            ) from e
        except AgentError as e:
            raise _no_bundle() from e

    async def _collect(self, nonce: str) -> StoredBundle:
        try:
            async with self._quotes:
                return await self._link.bundle(nonce)
        except AgentError as e:
            raise _no_bundle() from e

    def _forget(self, nonce: str, done: asyncio.Task[StoredBundle]) -> None:
        del self._running[nonce]
        if not done.cancelled():
            done.exception()  # seen, even if every caller has left


def _no_bundle() -> RequestRefused:
    return RequestRefused(
        "attestation.unavailable", "no evidence now", hint="try again later", status=503, headers=_LATER
    )


def nonce_of(query: str) -> str:
    """The nonce, as lower-case hex. Raises RequestRefused `attestation.nonce`."""
    if not (found := _NONCE.fullmatch(query)):
        raise RequestRefused(
            "attestation.nonce", "the query is not one nonce", hint="send ?nonce=<16 to 64 bytes of hex>", status=400
        )
    return found[1].lower()
