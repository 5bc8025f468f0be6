"""RCAR sessions: unattested, attested, spent. No I/O; time is an argument."""

import base64
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from antechamber.errors import BrokerDenied
from antechamber.evidence.appraise import VerifiedEvidence

MAX_SESSIONS = 4096


def _denied(code: str, detail: str) -> BrokerDenied:
    return BrokerDenied(code, detail, hint="open a new session with /auth")


@dataclass(frozen=True, slots=True)
class Attested:
    """What a session holds once its Evidence verified."""

    verified: VerifiedEvidence
    pubkey: Mapping[str, str]
    token: str
    token_id: str  # jti
    token_expires: int
    digests: str  # of the Evidence, for the audit


@dataclass(slots=True)
class Session:
    """One challenge and what came of it."""

    id: str  # 32 hex digits; it is the cookie
    nonce: str
    expires: int
    attested: Attested | None = None
    spent: bool = False

    @property
    def state(self) -> Literal["unattested", "attested", "spent"]:
        if self.spent:
            return "spent"
        return "unattested" if self.attested is None else "attested"

    def require(self) -> Attested:
        """Raises BrokerDenied `session.unattested`, `session.spent`."""
        if self.spent:
            raise _denied("session.spent", "this session has released a key, and is over")
        if self.attested is None:
            raise _denied("session.unattested", "this session is not attested")
        return self.attested


class Sessions:
    """At most `limit` at a time. When full, the oldest unattested one goes, so a flood cannot drop attested guests."""

    def __init__(self, lifetime_s: int, limit: int = MAX_SESSIONS) -> None:
        self._lifetime_s, self._limit = lifetime_s, limit
        self._by_id: OrderedDict[str, Session] = OrderedDict()
        self._by_token: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_id)

    def open(self, now: int) -> Session:
        """A session with a fresh nonce of 32 bytes. Raises BrokerDenied `session.full`."""
        nonce = base64.b64encode(secrets.token_bytes(32)).decode()
        session = Session(secrets.token_hex(16), nonce, now + self._lifetime_s)
        with self._lock:
            self._sweep(now)
            if len(self._by_id) >= self._limit:
                self._evict()
            self._by_id[session.id] = session
        return session

    def find(self, session_id: str, now: int) -> Session:
        """By cookie. Raises BrokerDenied `session.unknown`."""
        session = self._by_id.get(session_id)
        if session is None or now >= session.expires:
            raise _denied("session.unknown", "no such session, or it is over")
        return session

    def find_token(self, token_id: str, now: int) -> Session:
        """By `jti`: a token of another run of the broker is not known. Raises BrokerDenied `session.token`."""
        session = self._by_token.get(token_id)
        if session is None or session.attested is None or now >= session.attested.token_expires:
            raise _denied("session.token", "this token is not of a session here, or it is over")
        return session

    def attest(self, session: Session, attested: Attested) -> None:
        """Raises BrokerDenied `session.state` unless the session is unattested, and still known."""
        with self._lock:
            if session.state != "unattested" or self._by_id.get(session.id) is not session:
                raise _denied("session.state", "this session was attested or dropped meanwhile")
            session.attested = attested
            self._by_token[attested.token_id] = session

    def spend(self, session: Session) -> None:
        """Take the one key that a session may release: session and token are over. Raises BrokerDenied `session.*`."""
        with self._lock:  # of two requests at once, one takes it
            session.require()
            session.spent = True

    def _sweep(self, now: int) -> None:
        for session in [s for s in self._by_id.values() if self._over(s, now)]:
            self._drop(session)

    @staticmethod
    def _over(session: Session, now: int) -> bool:
        attested = session.attested
        return now >= session.expires and (attested is None or now >= attested.token_expires)

    def _evict(self) -> None:
        oldest = next((s for s in self._by_id.values() if s.attested is None), None)
        if oldest is None:
            raise _denied("session.full", f"{self._limit} attested sessions")
        self._drop(oldest)

    def _drop(self, session: Session) -> None:
        del self._by_id[session.id]
        if session.attested is not None:
            self._by_token.pop(session.attested.token_id, None)
