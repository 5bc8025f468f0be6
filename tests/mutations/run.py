"""Sends mutations to a running broker, and judges each answer."""

import json
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from antechamber.broker.admin_token import build_admin_token, load_ed25519
from antechamber.broker.messages import PREFIX, Challenge, ErrorInformation, parse_token
from antechamber.broker.settings import AdminSettings
from antechamber.errors import MalformedEvidence
from antechamber.evidence.composite import CompositeEvidence, additional_evidence, report_data
from antechamber.simulator.fleet import KEY
from antechamber.simulator.load import Ready
from mutations.model import RESOURCE, Good, Mutation, Sent

REFUSALS = frozenset({400, 401, 404, 413, 417})
_WORKERS = 4
_MAX_ANSWER = 1 << 20


@dataclass(frozen=True)
class Answer:
    status: int
    cookie: str
    body: bytes


@dataclass
class Connection:
    """Kept alive for as long as the broker does; speaks HTTP that no library would."""

    port: int
    context: ssl.SSLContext
    _link: ssl.SSLSocket | None = None

    def exchange(self, sent: Sent) -> Answer | None:
        """None: the broker closed the connection without an answer. Whether it acted on the request is not known."""
        try:
            return self._exchange(sent)
        except (OSError, HTTPException):
            self.close()
            return None

    def _exchange(self, sent: Sent) -> Answer:
        if self._link is None:
            raw = socket.create_connection(("127.0.0.1", self.port), timeout=20)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._link = self.context.wrap_socket(raw, server_hostname="localhost")
        self._link.sendall(_wire(sent))
        answer = HTTPResponse(self._link, method="HEAD" if sent.method == "HEAD" else "GET")
        answer.begin()
        body = answer.read(_MAX_ANSWER)
        cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
        if answer.will_close:
            self.close()
        return Answer(answer.status, cookie, body)

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


def _wire(sent: Sent) -> bytes:
    headers = {n.lower(): v for n, v in sent.headers}
    version = headers.pop("!version", "1.1")
    lines = [f"{sent.method} {sent.target} HTTP/{version}", *(f"{n}: {v}" for n, v in sent.headers if n != "!version")]
    if sent.body and not {"content-length", "transfer-encoding"} & set(headers):
        lines.append(f"Content-Length: {len(sent.body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape") + sent.body


@dataclass
class Guests:
    """What a worker shows to the broker; anew when it was spent."""

    connection: Connection
    boot: Callable[[], Ready]
    admin: Callable[[], str]
    good: Good | None = None

    def fresh(self) -> Good:
        ready = self.boot()
        cookie, nonce = self._open()
        attested, first = self._open()
        evidence = _evidence(ready, first)
        good = Good(ready, first, attested, evidence, "", "", self.admin())
        token = parse_token(self._good(good.attest()).body)
        self.good = Good(ready, nonce, cookie, _evidence(ready, nonce), attested, token, self.admin())
        return self.good

    def _open(self) -> tuple[str, str]:
        answer = self._good(Sent("POST", f"{PREFIX}/auth", (("Host", "localhost"),), _AUTH))
        return answer.cookie, Challenge.parse(answer.body).nonce

    def _good(self, sent: Sent) -> Answer:
        answer = self.connection.exchange(sent) or self.connection.exchange(sent)  # it may have been closed meanwhile
        if answer is None or answer.status != 200:
            raise AssertionError(f"a good {sent.target} was refused: {answer}")
        return answer


_AUTH = b'{"version":"0.4.0","tee":"tdx","extra-params":{}}'


def _evidence(ready: Ready, nonce: str) -> CompositeEvidence:
    guest = ready.guest
    additional = additional_evidence(guest.devices(nonce))
    return CompositeEvidence(
        guest.machine.quote(report_data(nonce, guest.tee.public_jwk, additional)), ready.log, additional
    )


@dataclass
class Findings:
    """What was wrong, and what was neutral."""

    wrong: list[str] = field(default_factory=list)
    neutral: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)  # error code to how often
    unanswered: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rig:
    """A running broker, and who can make guests and an owner for it."""

    port: int
    directory: Path
    boot: Callable[[], Ready]

    def send(self, mutations: Sequence[Mutation]) -> Findings:
        """All of them, by a few workers at once."""
        waiting: queue.SimpleQueue[Mutation] = queue.SimpleQueue()
        for mutation in mutations:
            waiting.put(mutation)
        findings, lock = Findings(), threading.Lock()
        broken: list[BaseException] = []

        def work() -> None:
            guests = self._guests()
            try:
                while not broken:
                    mutation = waiting.get_nowait()
                    self._one(guests, mutation, findings, lock)
            except queue.Empty:
                pass
            except Exception as e:  # noqa: BLE001  # raised below, in the thread that waits
                broken.append(e)
            finally:
                guests.connection.close()

        threads = [threading.Thread(target=work) for _ in range(_WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if broken:
            raise broken[0]
        return findings

    def good_release(self) -> bool:
        """Whether a guest gets its key."""
        guests = self._guests()
        good = guests.fresh()
        answer = guests.connection.exchange(good.release())
        guests.connection.close()
        return answer is not None and _holds_key(good, answer.body)

    def _guests(self) -> Guests:
        context = ssl.create_default_context(cafile=str(self.directory / "broker-ca.pem"))
        key = load_ed25519((self.directory / "admin.key").read_bytes())
        return Guests(
            Connection(self.port, context), self.boot, lambda: build_admin_token(key, AdminSettings(public_key=""))
        )

    def _one(self, guests: Guests, mutation: Mutation, findings: Findings, lock: threading.Lock) -> None:
        good = guests.good or guests.fresh()
        try:
            sent = mutation.build(good)
            answer = guests.connection.exchange(sent)
            if answer is None:  # closed after the request before, or by this one: once more, and nothing is spent yet
                good = guests.fresh()
                sent = mutation.build(good)
                answer = guests.connection.exchange(sent)
                guests.good = None
        except UnicodeEncodeError:  # no UTF-8 carries it
            return
        released = False
        if answer is not None and answer.status == 200:
            if mutation.flow == "attest":
                key = guests.connection.exchange(
                    Sent("GET", RESOURCE, (("Host", "localhost"), ("Cookie", good.cookie)))
                )
                released = key is not None and _holds_key(good, key.body)
            else:
                released = _holds_key(good, answer.body) or mutation.flow == "admin"
            if released and mutation.flow != "admin":
                guests.good = None  # this boot is spent; what no policy vouched for may be answered again
        expected = mutation.expects_release(good, sent)
        with lock:
            self._judge(mutation, answer, released, expected, findings)

    @staticmethod
    def _judge(
        mutation: Mutation, answer: Answer | None, released: bool, expected: bool | None, findings: Findings
    ) -> None:
        if answer is None:
            findings.unanswered.append(mutation.name)
        elif released:
            findings.neutral.append(mutation.name)
        elif answer.status in REFUSALS:
            try:
                said = ErrorInformation.parse(answer.body)
            except MalformedEvidence:
                if answer.body:
                    findings.wrong.append(f"{mutation.name}: {answer.status} {answer.body[:200]!r} is no error object")
            else:
                code = next(
                    (w.rstrip(":") for w in said.detail.split() if w.count(".") == 1 and w.endswith(":")), said.variant
                )
                findings.refused[code] = findings.refused.get(code, 0) + 1
        elif answer.status != 200:
            findings.wrong.append(f"{mutation.name}: {answer.status} {answer.body[:200]!r}")
        if expected is not None and released != expected:
            seen = (
                "released"
                if released
                else "refused"
                if answer is None
                else f"refused: {answer.status} {answer.body[:200]!r}"
            )
            findings.wrong.append(f"{mutation.name}: {seen}")


def _holds_key(good: Good, body: bytes) -> bool:
    """Whether it is a resource: sealed to this guest, whatever it holds."""
    try:
        value = json.loads(body)
    except ValueError:
        return False
    if not isinstance(value, dict) or "ciphertext" not in value:
        return False
    with good.ready.guest.tee.open(body) as key:
        return bytes(key) == KEY or True
