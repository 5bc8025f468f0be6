"""Scenarios, verdicts, and what a scenario sees of the server that it is asked of."""

import http.client
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from interop.kit.attesters import Attester
from interop.kit.catalog import CATALOG
from interop.kit.jose import Kind, TeeKey, runtime_digest
from interop.kit.wire import PREFIX, Answer, Wire

Profile = Literal["trustee", "antechamber"]
Outcome = Literal["pass", "fail", "deviation", "not-applicable"]
DEVIATIONS = Path(__file__).parent / "deviations.yaml"


@dataclass(frozen=True, slots=True)
class Deviation:
    """Where our broker or agent differs on purpose. `seen` is what a scenario's step then sees."""

    id: str
    role: Literal["server", "client"]
    section: str
    trustee: str
    ours: str
    reason: str
    scenario: str = ""  # "" is one that the kit cannot ask
    step: str = ""
    seen: str = ""  # regular expression


def deviations() -> tuple[Deviation, ...]:
    """The one list: the kit's, and the table's in docs/kbs.md."""
    found = tuple(Deviation(**entry) for entry in yaml.safe_load(DEVIATIONS.read_text()))
    for one in found:
        if one.scenario and one.scenario not in CATALOG:
            raise ValueError(f"{one.id}: no scenario {one.scenario}")
    return found


class Failed(Exception):
    """What was seen is neither the protocol's nor a listed deviation."""


class NotApplicable(Exception):
    """This server or this run cannot be asked; the text says why."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One scenario's end."""

    id: str
    section: str
    title: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the run was given. Resources are repository/type/tag."""

    resource: str = "default/any/1"  # released to this attester, again and again
    boot_resource: str = ""  # released to it until it has one
    denied: str = ""  # not released to it
    missing: str = "antechamber-kit/missing/1"  # released, were it there
    token_ca: bytes | None = None  # PEM
    admin_token: Callable[[int], str] | None = None  # lifetime in seconds to a JWT
    throwaway: bool = False  # admin calls may change what this server holds
    wait: Callable[[int], None] | None = None  # let that many seconds pass
    lifetime_s: int = 300  # of sessions and tokens


@dataclass(slots=True)
class Session:
    """One RCAR session of the kit's."""

    nonce: str
    cookie: str
    key: TeeKey


@dataclass(slots=True)
class Kit:
    """One scenario's hands. Steps that a listed deviation covers must be seen as listed, or the list is stale."""

    wire: Wire
    attester: Attester
    options: Options
    profile: Profile
    expected: Mapping[str, Deviation]  # by step
    met: list[str] = field(default_factory=list)

    def hold(self, step: str, held: bool, seen: object) -> None:
        """One expectation of the reference. Raises Failed."""
        listed = self.expected.get(step)
        if listed is None:
            if not held:
                raise Failed(f"{step}: {seen}"[:400])
        elif re.search(listed.seen, str(seen)):
            self.met.append(listed.id)
        elif not held:
            raise Failed(f"{step}: {seen}, which is not deviation {listed.id} either"[:400])
        else:
            raise Failed(f"{step}: as the protocol has it: deviation {listed.id} is listed for nothing: {seen}"[:400])

    def ok(self, answer: Answer, step: str = "status") -> Answer:
        self.hold(step, answer.status == 200, answer)
        return answer

    def refused(self, answer: Answer, variant: str, detail: str, *, status: int = 401, step: str = "refusal") -> None:
        """`detail` is how it begins: whether more follows is `error.detail`'s question."""
        seen = answer.error()
        self.hold(step, answer.status == status and seen[0] == variant and seen[1].startswith(detail), answer)

    def post(self, path: str, value: object, **headers: str) -> Answer:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.wire.send("POST", PREFIX + path, body, {"Content-Type": "application/json"} | headers)

    def get(self, path: str, **headers: str) -> Answer:
        return self.wire.send("GET", PREFIX + path, None, headers)

    def request(self, **changes: object) -> dict[str, object]:
        return {"version": "0.4.0", "tee": self.attester.tee, "extra-params": {}} | changes

    def open(self, kind: Kind = "P-256") -> Session:
        """/auth. Raises Failed, so that no scenario goes on without a session."""
        answer = self.post("/auth", self.request())
        if answer.status != 200 or answer.cookie() is None:
            raise Failed(f"/auth: {answer}")
        return Session(answer.json()["nonce"], answer.cookie() or "", TeeKey.generate(kind))

    def evidence(self, session: Session, attester: Attester | None = None, **runtime: Any) -> dict[str, Any]:
        """The body of /attest. `runtime` is bound in the place of what it names."""
        who = attester or self.attester
        nonce, jwk = runtime.get("nonce", session.nonce), runtime.get("jwk", session.key.jwk)
        additional = who.additional(runtime_digest(nonce, jwk, None)[:32])
        primary = who.primary(runtime_digest(nonce, jwk, additional))
        return {
            "init-data": None,
            "runtime-data": {"nonce": session.nonce, "tee-pubkey": session.key.jwk},
            "tee-evidence": {"primary_evidence": primary, "additional_evidence": additional},
        }

    def attest(self, session: Session, body: object = None) -> Answer:
        return self.post("/attest", self.evidence(session) if body is None else body, Cookie=session.cookie)

    def attested(self, kind: Kind = "P-256") -> tuple[Session, str]:
        """A session and its token. Raises Failed."""
        session = self.open(kind)
        answer = self.attest(session)
        if answer.status != 200:
            raise Failed(f"/attest: {answer}")
        return session, str(answer.json()["token"])

    def resource(self, path: str | None = None, **headers: str) -> Answer:
        return self.get("/resource/" + (path or self.options.resource), **headers)

    def admin(self, lifetime_s: int = 300) -> dict[str, str]:
        """Raises NotApplicable."""
        if self.options.admin_token is None:
            not_applicable("give --admin-key")
        return {"Authorization": "Bearer " + self.options.admin_token(lifetime_s)}

    def throwaway(self) -> None:
        """Raises NotApplicable."""
        if not self.options.throwaway:
            not_applicable("it would change the server: give --throwaway for one that may be changed")

    def wait(self, seconds: int) -> None:
        """Raises NotApplicable."""
        if self.options.wait is None:
            not_applicable(f"it takes {seconds} s: give --wait")
        self.options.wait(seconds)


def not_applicable(why: str) -> NoReturn:
    raise NotApplicable(why)


Ask = Callable[[Kit], None]
SERVER: dict[str, Ask] = {}


def asks(scenario: str) -> Callable[[Ask], Ask]:
    """Register what asks a server `scenario`."""

    def register(ask: Ask) -> Ask:
        if scenario not in CATALOG or scenario in SERVER:
            raise ValueError(f"{scenario} is not in the catalogue, or twice here")
        SERVER[scenario] = ask
        return ask

    return register


def run(scenario: str, wire: Wire, attester: Callable[[], Attester], options: Options, profile: Profile) -> Verdict:
    """Ask one scenario, with an attester of its own: what one releases, the next still gets.

    Never raises for what a server does.
    """
    listed = {d.step: d for d in deviations() if d.scenario == scenario and d.role == "server"}
    kit = Kit(wire, attester(), options, profile, listed if profile == "antechamber" else {})
    section, title = CATALOG[scenario]
    try:
        SERVER[scenario](kit)
    except NotApplicable as e:
        return Verdict(scenario, section, title, "not-applicable", str(e))
    except Failed as e:
        return Verdict(scenario, section, title, "fail", str(e))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as e:
        return Verdict(scenario, section, title, "fail", f"{type(e).__name__}: {e}"[:400])
    if unmet := sorted(d.id for d in kit.expected.values() if d.id not in kit.met):
        return Verdict(scenario, section, title, "fail", f"listed, but not seen: {', '.join(unmet)}")
    return Verdict(scenario, section, title, "deviation" if kit.met else "pass", ", ".join(kit.met))


def real_wait(seconds: int) -> None:
    time.sleep(seconds)
