"""RCAR sessions: unattested, attested, spent. No I/O; time is an argument.

Sessions are free to open, so each address has few that no policy vouches for, and those make room first: a flood pushes
out its own, and never a guest that a policy vouches for.
"""

import base64
import ipaddress
import secrets
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from antechamber.errors import BrokerDenied
from antechamber.evidence.appraise import Phase, VerifiedEvidence, event_content

MAX_SESSIONS = 4096
PER_PEER = 64  # of one address, unattested or contraindicated
PER_GUEST = 16  # of one TLS key, affirming
SPENT_S = 86_400  # a boot that released a key is remembered for a day: longer than any boot takes to measure `released`


def _denied(code: str, detail: str) -> BrokerDenied:
    return BrokerDenied(code, detail, hint="open a new session with /auth")


def origin(peer: str) -> str:
    """Whom an address counts for: of IPv6, a host has a whole /64."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return peer
    return str(address.ipv4_mapped or ipaddress.IPv6Network((address, 64), strict=False))


@dataclass(frozen=True, slots=True)
class Attested:
    """What a session holds once its Evidence verified."""

    verified: VerifiedEvidence
    pubkey: Mapping[str, str]
    token: str
    token_id: str  # jti
    token_expires: int
    digests: str  # of the Evidence, for the audit
    policy: str | None  # that held; None is contraindicated

    @property
    def phase(self) -> Phase:
        return self.verified.phase

    @property
    def tls(self) -> str | None:
        """Content of the `tls` event: one boot of one guest."""
        return event_content(self.verified.events, "tls")


@dataclass(slots=True)
class Session:
    """One challenge and what came of it."""

    id: str  # 32 hex digits; it is the cookie
    nonce: str
    expires: int
    origin: str
    attested: Attested | None = None
    spent: bool = False

    @property
    def state(self) -> Literal["unattested", "attested", "spent"]:
        if self.spent:
            return "spent"
        return "unattested" if self.attested is None else "attested"

    @property
    def affirming(self) -> bool:
        return self.attested is not None and self.attested.policy is not None

    def require(self) -> Attested:
        """Raises BrokerDenied `session.unattested`, `session.spent`."""
        if self.spent:
            raise _denied("session.spent", "this session, or another of this boot, has released a key, and is over")
        if self.attested is None:
            raise _denied("session.unattested", "this session is not attested")
        return self.attested


class Sessions:
    """At most `limit` at a time."""

    def __init__(self, lifetime_s: int, limit: int = MAX_SESSIONS) -> None:
        self._lifetime_s, self._limit = lifetime_s, limit
        self._by_id: OrderedDict[str, Session] = OrderedDict()
        self._by_token: dict[str, Session] = {}
        self._spent: dict[str, int] = {}  # TLS key of a boot that released a key, until when
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_id)

    def open(self, now: int, peer: str) -> Session:
        """A session with a fresh nonce of 32 bytes. Raises BrokerDenied `session.full`."""
        nonce = base64.b64encode(secrets.token_bytes(32)).decode()
        session = Session(secrets.token_hex(16), nonce, now + self._lifetime_s, origin(peer))
        with self._lock:
            self._sweep(now)
            self._make_room(session.origin)
            self._by_id[session.id] = session
        return session

    def find(self, session_id: str, now: int) -> Session:
        """By cookie. Raises BrokerDenied `session.unknown`."""
        session = self._by_id.get(session_id)
        if session is None or now >= session.expires:
            raise _denied("session.unknown", "no such session, or it is over")
        return session

    def find_token(self, token_id: str, now: int) -> Session:
        """By `jti`: a token of another run of the broker is not known. Raises BrokerDenied `session.token`.

        A guest that serves publishes its token in every bundle, so only one of the boot phase is a credential.
        """
        session = self._by_token.get(token_id)
        if session is None or session.attested is None or now >= session.attested.token_expires:
            raise _denied("session.token", "this token is not of a session here, or it is over")
        if session.attested.phase != "boot":
            raise _denied("session.token", "this token is of a guest that serves: it is public, and opens nothing")
        return session

    def attest(self, session: Session, attested: Attested) -> None:
        """Raises BrokerDenied `session.state` if it was attested meanwhile, `session.unknown`, `session.spent`."""
        with self._lock:
            self.require_unspent(attested)
            if self._by_id.get(session.id) is not session:
                raise _denied("session.unknown", "this session was dropped meanwhile")
            if session.state != "unattested":
                raise _denied("session.state", "this session was attested meanwhile")
            session.attested = attested
            self._by_token[attested.token_id] = session
            if session.affirming and attested.tls is not None:
                self._limit_guest(attested.tls)

    def spend(self, session: Session, now: int) -> None:
        """Take the one key that a boot may release: its sessions and tokens are over. Raises BrokerDenied `session.*`.

        Without this, a second session attested before `released` would get the key again after it.
        """
        with self._lock:  # of two requests at once, one takes it
            attested = session.require()
            session.spent = True
            if attested.tls is None:
                return
            self._spent[attested.tls] = now + SPENT_S
            for other in self._by_id.values():
                if other.attested is not None and other.attested.phase == "boot" and other.attested.tls == attested.tls:
                    other.spent = True

    def require_unspent(self, attested: Attested) -> None:
        """Raises BrokerDenied `session.spent` for the Evidence of a boot that has released its key."""
        if attested.phase == "boot" and attested.tls in self._spent:
            raise _denied("session.spent", "another session of this boot has released a key")

    def _sweep(self, now: int) -> None:
        for session in [s for s in self._by_id.values() if self._over(s, now)]:
            self._drop(session)
        for tls in [tls for tls, until in self._spent.items() if now >= until]:
            del self._spent[tls]

    @staticmethod
    def _over(session: Session, now: int) -> bool:
        attested = session.attested
        return now >= session.expires and (attested is None or now >= attested.token_expires)

    def _make_room(self, origin: str) -> None:
        """Drop one of the address's own, or, when all is full, of the address that has most."""
        weak = [s for s in self._by_id.values() if not s.affirming]
        counts = Counter(s.origin for s in weak)
        if counts[origin] < PER_PEER:
            if len(self._by_id) < self._limit:
                return
            if not weak:
                raise _denied("session.full", f"{self._limit} attested sessions")
            origin = counts.most_common(1)[0][0]
        mine = [s for s in weak if s.origin == origin]
        self._drop(min(mine, key=lambda s: s.attested is None))  # contraindicated before unattested, then the oldest

    def _limit_guest(self, tls: str) -> None:
        """Even a guest that is broken into cannot fill the table."""
        own = [s for s in self._by_id.values() if s.affirming and s.attested is not None and s.attested.tls == tls]
        for session in own[:-PER_GUEST]:
            self._drop(session)

    def _drop(self, session: Session) -> None:
        del self._by_id[session.id]
        if session.attested is not None:
            self._by_token.pop(session.attested.token_id, None)
