"""RCAR sessions: unattested, attested, spent. No I/O; time is an argument.

/auth is free for anyone, so it stores nothing: an unattested session is what its id says, under a MAC, and no flood
pushes one out. What verified Evidence earned is stored; what no policy vouches for is short, and makes room first.
"""

import base64
import hmac
import ipaddress
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from antechamber.errors import AppraisalRefused, BrokerDenied
from antechamber.evidence.appraise import Phase, VerifiedEvidence, event_content

MAX_SESSIONS = 4096  # that may still be given something
_ENDED = 8  # times as many spent ones, of which little is kept: 100 releases a second for 5 minutes
PER_PEER = 64  # of one address, contraindicated
PER_GUEST = 16  # of one TLS key, affirming
_NONE: Mapping[str, int] = MappingProxyType({})
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
    """What a session holds once its Evidence verified, and a policy vouched for it."""

    verified: VerifiedEvidence
    pubkey: Mapping[str, str]
    token: str
    token_id: str  # jti
    token_expires: int
    digests: str  # of the Evidence, for the audit

    @property
    def phase(self) -> Phase:
        return self.verified.phase

    @property
    def tls(self) -> str | None:
        """Content of the `tls` event: one boot of one guest."""
        return event_content(self.verified.events, "tls")


@dataclass(frozen=True, slots=True)
class Contraindicated:
    """What is kept of genuine Evidence that no policy vouches for, or of a session that is spent: why. It is short."""

    code: str
    detail: str
    token_id: str
    token_expires: int
    digests: str


@dataclass(slots=True)
class Session:
    """One challenge and what came of it."""

    id: str  # it is the cookie
    nonce: str
    expires: int
    origin: str = ""  # of who attested
    result: Attested | Contraindicated | None = None
    spent: bool = False

    @property
    def attested(self) -> Attested | None:
        return self.result if isinstance(self.result, Attested) else None

    @property
    def state(self) -> Literal["unattested", "attested", "spent"]:
        """Contraindicated is unattested: the same challenge may be answered better."""
        if self.spent:
            return "spent"
        return "unattested" if self.attested is None else "attested"

    def require(self, now: int) -> Attested:
        """What it holds, for as long as its token lives: however long sessions last, Evidence is not older.

        Raises BrokerDenied `session.unattested`, `session.spent`, `session.expired`; AppraisalRefused if no policy
        vouches for it.
        """
        if self.spent:
            raise _denied("session.spent", "this session, or another of this boot, has released a key, and is over")
        if self.result is not None and now >= self.result.token_expires:
            raise _denied("session.expired", "the token of this session is over")
        if isinstance(self.result, Contraindicated):
            raise AppraisalRefused(self.result.code, self.result.detail, hint="compare the Evidence with the policies")
        if self.result is None:
            raise _denied("session.unattested", "this session is not attested")
        return self.result


class _Challenges:
    """Session ids that say themselves when they end, under a key that ends with this process.

    An id is random (16 bytes), expiry (8), MAC (32), in hex; its nonce is another MAC, over the id.
    """

    _HEAD, _SIZE = 24, 56  # bytes

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def fresh(self, expires: int) -> Session:
        head = secrets.token_bytes(16) + expires.to_bytes(8, "big")
        return self._session(head + self._mac(b"id", head))

    def read(self, session_id: str, now: int) -> Session | None:
        """None if it is not ours, or over. One session has one spelling, or it could be answered twice."""
        try:
            raw = bytes.fromhex(session_id)
        except ValueError:
            return None
        head = raw[: self._HEAD]
        if len(raw) != self._SIZE or raw.hex() != session_id:
            return None
        if not hmac.compare_digest(raw[self._HEAD :], self._mac(b"id", head)):
            return None
        session = self._session(raw)
        return session if now < session.expires else None

    def _session(self, raw: bytes) -> Session:
        nonce = base64.b64encode(self._mac(b"nonce", raw)).decode()
        return Session(raw.hex(), nonce, int.from_bytes(raw[16 : self._HEAD], "big"))

    def _mac(self, purpose: bytes, value: bytes) -> bytes:
        return hmac.digest(self._key, purpose + b"\0" + value, "sha256")


class Sessions:
    """Those that attested: at most `limit` at a time, and as many spent ones as there is room for the little they keep.

    No operation walks them all, but for one a second that drops what is over.
    """

    def __init__(self, lifetime_s: int, limit: int = MAX_SESSIONS, spent: Mapping[str, int] = _NONE) -> None:
        """`spent`: TLS keys of boots that released a key to an earlier run of the broker, and when."""
        self._lifetime_s, self._limit = lifetime_s, limit
        self._challenges = _Challenges()
        self._by_id: dict[str, Session] = {}
        self._ended: dict[str, Session] = {}
        self._by_token: dict[str, Session] = {}
        self._of_guest: dict[str, dict[str, Session]] = {}  # affirming, by TLS key; oldest first
        self._weak: dict[str, dict[str, Session]] = {}  # contraindicated, by address; oldest first
        # TLS key of a boot that released a key, until when; soonest first
        self._spent = {tls: time + SPENT_S for tls, time in sorted(spent.items(), key=lambda item: item[1])}
        self._swept: int | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_id)

    def open(self, now: int) -> Session:
        """A session with a fresh nonce of 32 bytes, which is not stored."""
        return self._challenges.fresh(now + self._lifetime_s)

    def find(self, session_id: str, now: int) -> Session:
        """By cookie. Raises BrokerDenied `session.unknown`."""
        challenge = self._challenges.read(session_id, now)
        if challenge is None:
            raise _denied("session.unknown", "no such session, or it is over")
        return self._stored(session_id) or challenge

    def find_token(self, token_id: str, now: int) -> Session:
        """By `jti`: a token of another run of the broker is not known. Raises BrokerDenied `session.token`.

        A guest that serves publishes its token in every bundle, so only one of the boot phase is a credential.
        """
        session = self._by_token.get(token_id)
        if session is None or session.result is None or now >= session.result.token_expires:
            raise _denied("session.token", "this token is not of a session here, or it is over")
        if session.attested is not None and session.attested.phase != "boot":
            raise _denied("session.token", "this token is of a guest that serves: it is public, and opens nothing")
        return session

    def attest(self, session: Session, result: Attested | Contraindicated, now: int, peer: str) -> None:
        """Store it. Raises BrokerDenied `session.state` (attested meanwhile), `session.spent`, `session.full`."""
        with self._lock:
            if isinstance(result, Attested):
                self.require_unspent(result)
            self._sweep(now)
            if (stored := self._stored(session.id)) is not None:
                if stored.state != "unattested":
                    raise _denied("session.state", "this session was attested meanwhile")
                self._drop(stored)
            session.origin, session.result = origin(peer), result
            self._make_room(session)
            self._by_id[session.id] = self._by_token[result.token_id] = session
            groups, key = self._groups(session)
            group = groups.setdefault(key, {})
            group[session.id] = session
            if session.attested is not None and len(group) > PER_GUEST:
                self._drop(next(iter(group.values())))  # even a guest that is broken into cannot fill the table

    def spend(self, session: Session, now: int) -> None:
        """Take the one key that a boot may release: its sessions and tokens are over. Raises BrokerDenied `session.*`.

        Without this, a second session attested before `released` would get the key again after it.
        """
        with self._lock:  # of two requests at once, one takes it
            attested = session.require(now)
            self._end(session)
            if attested.tls is None:
                return
            for other in list(self._of_guest.get(attested.tls, {}).values()):
                if other.attested is not None and other.attested.phase == "boot":
                    self._end(other)
            self._spent.pop(attested.tls, None)  # to stand last
            self._spent[attested.tls] = now + SPENT_S

    def require_unspent(self, attested: Attested) -> None:
        """Raises BrokerDenied `session.spent` for the Evidence of a boot that has released its key."""
        if attested.phase == "boot" and attested.tls in self._spent:
            raise _denied("session.spent", "another session of this boot has released a key")

    def _stored(self, session_id: str) -> Session | None:
        return self._by_id.get(session_id) or self._ended.get(session_id)

    def _end(self, session: Session) -> None:
        """It is spent: what it held goes, so that it takes no room from those to come."""
        session.spent, kept = True, session.result
        self._drop(session)
        if kept is not None:
            session.result = Contraindicated(
                "session.spent", "it has released a key", kept.token_id, kept.token_expires, kept.digests
            )
            self._by_token[kept.token_id] = session
        self._ended[session.id] = session
        if len(self._ended) > self._limit * _ENDED:
            self._drop(next(iter(self._ended.values())))

    def _sweep(self, now: int) -> None:
        """Once for each second: whatever came since cannot be over."""
        if now == self._swept:
            return
        self._swept = now
        for table in (self._by_id, self._ended):
            for session in [s for s in table.values() if self._over(s, now)]:
                self._drop(session)
        while self._spent and now >= next(iter(self._spent.values())):
            del self._spent[next(iter(self._spent))]

    @staticmethod
    def _over(session: Session, now: int) -> bool:
        return now >= session.expires and (session.result is None or now >= session.result.token_expires)

    def _make_room(self, new: Session) -> None:
        """Drop a contraindicated one of the address's own, or, when all is full, of the address that has most."""
        own = self._weak.get(new.origin, {})
        if new.attested is None and len(own) >= PER_PEER:
            most = own
        elif len(self._by_id) < self._limit:
            return
        elif self._weak:
            most = max(self._weak.values(), key=len)
        else:
            raise _denied("session.full", f"{self._limit} attested sessions")
        self._drop(next(iter(most.values())))

    def _groups(self, session: Session) -> tuple[dict[str, dict[str, Session]], str]:
        """What it counts with, and under which key: its guest, or, contraindicated, its address."""
        if session.attested is None:
            return self._weak, session.origin
        return self._of_guest, session.attested.tls or f"session {session.id}"

    def _drop(self, session: Session) -> None:
        self._by_id.pop(session.id, None)
        self._ended.pop(session.id, None)
        if session.result is not None:
            self._by_token.pop(session.result.token_id, None)
        groups, key = self._groups(session)
        if (group := groups.get(key)) is not None:
            group.pop(session.id, None)
            if not group:
                del groups[key]
