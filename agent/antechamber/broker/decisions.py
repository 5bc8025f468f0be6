"""What the broker decides, without HTTP: open, attest, release, certify, lease. Every decision leaves a record."""

import hmac
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from antechamber import log
from antechamber.broker import audit, jwe
from antechamber.broker.admin_token import AdminVerifier
from antechamber.broker.audit import Audit, Decision, Record
from antechamber.broker.authority import Authority
from antechamber.broker.ear import TokenSigner, compose_claims
from antechamber.broker.endorsements import CollateralFiles
from antechamber.broker.history import History
from antechamber.broker.messages import VERSION, Attestation, Request, parse_path
from antechamber.broker.refused import RefusedBodies
from antechamber.broker.rules import LoadedRules, RulesFile
from antechamber.broker.sessions import Attested, Contraindicated, Session, Sessions
from antechamber.broker.store import Store
from antechamber.errors import AgentError, BrokerDenied, MalformedEvidence
from antechamber.evidence import initdata
from antechamber.evidence.appraise import VerifiedEvidence, event_content, verify
from antechamber.evidence.composite import CompositeEvidence, device_nonce, report_data
from antechamber.evidence.ear import parse_ear


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client shows: the session's cookie, or a token."""

    cookie: str | None = field(repr=False)
    bearer: str | None = field(repr=False)


@dataclass(slots=True)
class Trail:
    """What is known so far of one request, for its record."""

    peer: str
    resource: str
    session: str = ""
    evidence: str = ""
    policy: str = ""
    known: bool = False  # a guest that a policy vouches for, or the owner; all others are strangers
    guest: str = ""  # of a known guest: the content of its `tls` event, or its session where that is forgotten


class NotFound(BrokerDenied):
    """Allowed, but not there."""


def wall_clock() -> int:
    return int(time.time())


@dataclass(frozen=True, slots=True)
class Broker:
    """The broker's parts and its decisions. Methods block; threads may share one object."""

    rules: RulesFile
    store: Store
    history: History
    audit: Audit
    sessions: Sessions
    tokens: TokenSigner
    token_ca: str  # PEM
    guests: Authority
    collateral: CollateralFiles
    admins: AdminVerifier
    bodies: RefusedBodies
    clock: Callable[[], int] = wall_clock

    def auth(self, trail: Trail, body: bytes) -> Session:
        """/auth. Raises MalformedEvidence `kbs.*`, BrokerDenied `broker.version`, `broker.tee`."""
        request = Request.parse(body)
        if request.version != VERSION:
            seen = f"expect ={VERSION} while the request is {ascii(request.version)[1:-1]}"  # clients search for this
            raise BrokerDenied("broker.version", f"KBS Client Protocol Version Mismatch: {seen}", hint="speak 0.4.0")
        if request.tee != "tdx":  # `sample` above all: it proves nothing
            raise BrokerDenied("broker.tee", f"tee {request.tee!a} is not served", hint="attest a TDX guest")
        return self.sessions.open(self.clock())

    def attest(self, trail: Trail, session_id: str | None, body: bytes) -> str:
        """/attest: verify, appraise, sign. A session that a policy vouched for gets its token again.

        1. the session is open, and the nonce is its own
        2. the Evidence verifies over nonce, key and device Evidence; init-data, where sent, is MRCONFIGID's
        3. every policy is asked; the token says whether one held, and only rules release

        Raises BrokerDenied `session.*`, MalformedEvidence, AppraisalRefused, ConfigError `rules.*`.
        """
        session = self.session(trail, Credentials(session_id, None))  # 1
        if session.state == "spent":
            session.require(self.clock())
        if session.attested is not None:
            return session.attested.token
        sent = Attestation.parse(body)
        if not hmac.compare_digest(sent.nonce.encode(), session.nonce.encode()):
            raise BrokerDenied("session.nonce", "the nonce is not this session's", hint="send the nonce of /auth")
        evidence = CompositeEvidence.from_kbs(sent.primary, sent.additional)
        trail.evidence = audit.evidence_digests(evidence.quote, evidence.event_log, evidence.additional)
        loaded = self.loaded(trail)
        try:
            verified = self._verify(loaded, sent, evidence)  # 2
        except AgentError:
            self._keep(trail, body)
            raise
        policy = loaded.rules.holding(verified)  # 3
        if policy is None:
            self._keep(trail, body)
        trail.known = policy is not None
        trail.guest = event_content(verified.events, "tls") or "" if trail.known else ""
        claims = compose_claims(verified, nonce=sent.nonce, pubkey=sent.pubkey, policy=policy, now=self.clock())
        token = self.tokens.sign(claims)
        kept = claims["jti"], claims["exp"], trail.evidence
        result: Attested | Contraindicated
        if policy is not None:
            result, detail = Attested(verified, sent.pubkey, token, *kept), f"{verified.phase}: {policy}"
            self.sessions.require_unspent(result)
        else:
            code, seen = loaded.rules.closest(verified)
            result, detail = Contraindicated(code, seen, *kept), f"contraindicated: {code}: {seen}"
        self.record(trail, "attested", detail=detail)
        self.sessions.attest(session, result, self.clock(), trail.peer)
        return token

    def _keep(self, trail: Trail, body: bytes) -> None:
        """The body of a refused guest, where the owner wants it; its record names the file."""
        try:
            name = self.bodies.add(body, trail.session, self.clock())
        except OSError as e:  # it decides nothing
            log.event("broker.unkept", level=logging.WARNING, session=trail.session, error=type(e).__name__)
            return
        if name:
            trail.evidence = json.dumps({**json.loads(trail.evidence), "body": name})

    def _verify(self, loaded: LoadedRules, sent: Attestation, evidence: CompositeEvidence) -> VerifiedEvidence:
        now = self.clock()
        verified = verify(
            evidence,
            report_data=report_data(sent.nonce, sent.pubkey, sent.additional),
            gpu_nonce=device_nonce(sent.nonce, sent.pubkey),
            anchors=loaded.rules.anchors.anchors(),
            collateral=self.collateral.current(now),
            now=now,
        )
        if sent.init_data is not None:
            initdata.require_bound(sent.init_data.encode(), verified.quote.body.mr_config_id)
        return verified

    def release(self, trail: Trail, credentials: Credentials, path: str) -> bytes:
        """GET of a resource: a JWE. A resource of the boot phase ends session and token, whichever was shown.

        Sealed first, so that what cannot be sealed spends nothing. Its rule's limits are decided and recorded, the
        session spent and the decision put on record in one transaction; the answer leaves once that is on the disk.

        Raises BrokerDenied `session.*`, `rules.*`, AppraisalRefused, MalformedEvidence `kbs.path`, NotFound.
        """
        session = self.session(trail, credentials)
        attested = session.require(self.clock())
        path = parse_path(path)
        rule = self.loaded(trail).rules.require_resource(path, attested.verified)
        secret = self.store.get(path)
        if secret is None:
            raise NotFound("resource.missing", f"{path} is allowed, but not here", hint="upload it")
        with secret as value:
            sealed = jwe.seal(attested.pubkey, bytes(value))
        with self.history.releasing(path, self._tls(attested.verified), rule, self.clock()) as db:
            if rule.phase == "boot":
                self.sessions.spend(session, self.clock())
            self.audit.insert(db, self._record(trail, "released", detail=rule.phase))
        self._log(trail, "released")
        return sealed

    def certify(self, trail: Trail, credentials: Credentials, request_der: bytes) -> bytes:
        """A certificate chain (PEM) for the TLS key in the session's verified event log.

        Raises BrokerDenied `session.*`, `rules.*`, `certificate.*`, AppraisalRefused, MalformedEvidence.
        """
        attested = self.session(trail, credentials).require(self.clock())
        rule = self.loaded(trail).rules.require_certificate(attested.verified)
        chain = self.guests.certify(request_der, tls=self._tls(attested.verified), names=rule.names, now=self.clock())
        self.record(trail, "certified", detail=self._tls(attested.verified))
        return chain

    def lease(self, trail: Trail, credentials: Credentials) -> bytes:
        """Leave to go on serving: JSON. Raises BrokerDenied `session.*`, `rules.*`, AppraisalRefused."""
        attested = self.session(trail, credentials).require(self.clock())
        rules = self.loaded(trail).rules
        rules.require_lease(attested.verified)
        self.history.lease(self._tls(attested.verified), rules.resources, self.clock())
        self.record(trail, "leased")
        return json.dumps({"time": self.clock(), "tls": self._tls(attested.verified)}).encode()

    def put(self, trail: Trail, bearer: str | None, path: str, value: bytes) -> None:
        """Upload. Raises BrokerDenied `admin.token`, MalformedEvidence `kbs.path`, ConfigError."""
        subject = self.admins.require(bearer, self.clock())
        trail.known = True
        version = self.store.put(parse_path(path), value)
        self.record(trail, "stored", detail=f"version {version}, by {subject}")

    def delete(self, trail: Trail, bearer: str | None, path: str) -> None:
        """Raises BrokerDenied `admin.token`, MalformedEvidence `kbs.path`, NotFound."""
        subject = self.admins.require(bearer, self.clock())
        trail.known = True
        if not self.store.delete(parse_path(path)):
            raise NotFound("resource.missing", f"{path} is not here", hint="name a resource that is")
        self.record(trail, "deleted", detail=f"by {subject}")

    def session(self, trail: Trail, credentials: Credentials) -> Session:
        """By the cookie of a session that attested, else by our own token.

        Raises BrokerDenied `session.*`, and as `parse_ear` does.
        """
        session = self._find(credentials)
        trail.session = audit.session_digest(session.id)
        if session.result is not None:
            trail.evidence, trail.known = session.result.digests, session.attested is not None or session.spent
            if trail.known:
                trail.guest = (session.attested.tls if session.attested else None) or trail.session
        return session

    def _find(self, credentials: Credentials) -> Session:
        now = self.clock()
        if credentials.cookie is None and credentials.bearer is None:
            raise BrokerDenied("session.none", "no session and no token", hint="open a session with /auth")
        if credentials.cookie is not None:
            try:
                session = self.sessions.find(credentials.cookie, now)
            except BrokerDenied:
                if credentials.bearer is None:
                    raise
            else:
                if session.result is not None or credentials.bearer is None:
                    return session
        claims = parse_ear(credentials.bearer or "", self.token_ca, now)
        return self.sessions.find_token(claims.token_id, now)

    def loaded(self, trail: Trail) -> LoadedRules:
        loaded = self.rules.current()
        trail.policy = loaded.digest
        return loaded

    def record(self, trail: Trail, decision: Decision, *, code: str = "", detail: str = "") -> None:
        """On the disk when this returns."""
        record = self._record(trail, decision, code=code, detail=detail)
        if trail.guest:
            self.audit.of_guest(trail.guest, record)
        elif trail.known or decision not in ("attested", "refused"):
            self.audit.add(record)
        else:
            self.audit.note(record)
        self._log(trail, decision, code)

    def _record(self, trail: Trail, decision: Decision, *, code: str = "", detail: str = "") -> Record:
        return Record(
            time=self.clock(),
            session=trail.session,
            peer=trail.peer,
            resource=trail.resource,
            decision=decision,
            code=code,
            detail=detail,
            evidence=trail.evidence,
            policy=trail.policy,
        )

    @staticmethod
    def _log(trail: Trail, decision: Decision, code: str = "") -> None:
        log.event(f"broker.{decision}", resource=trail.resource, session=trail.session, peer=trail.peer, code=code)

    def refused(self, trail: Trail, error: AgentError) -> None:
        """Record a refusal; that nothing at all was shown is how every client begins, and no decision."""
        if error.code != "session.none":
            self.record(trail, "refused", code=error.code, detail=error.detail)

    @staticmethod
    def _tls(verified: VerifiedEvidence) -> str:
        tls = event_content(verified.events, "tls")
        if tls is None:
            raise MalformedEvidence("eventlog.missing", "the log names no TLS key", hint="measure `tls` before /attest")
        return tls
