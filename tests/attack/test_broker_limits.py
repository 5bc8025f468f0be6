"""A stranger, or a fault of its own, makes the broker say nothing about a guest, never that it failed.

A guest powers off at a verdict (401) and goes on without one (503): each test here ends with a guest that goes on.
"""

import contextlib
import json
import socket
import sqlite3
import ssl
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
from brokers import MODEL_KEY, PREFIX, Guest, Rig, auth_body, cookie_of, running

from antechamber import cli
from antechamber.boot.attestor import passing
from antechamber.broker import audit
from antechamber.broker.decisions import Trail
from antechamber.broker.kbs import Kbs
from antechamber.broker.messages import Attestation, ErrorInformation
from antechamber.broker.sessions import Contraindicated, Sessions
from antechamber.errors import AgentError, BrokerDenied, BrokerUnreachable, ConfigError


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running(tmp_path / "broker") as rig:
        yield rig


def serving(rig: Rig) -> Guest:
    guest = rig.guest()
    guest.cap()
    return guest


def reattest(guest: Guest, kbs: Kbs) -> None:
    """As the watch does."""
    guest.attest(kbs)
    kbs.lease()


def no_verdict(call: Callable[[], object], code: str, cause: str = "") -> None:
    with pytest.raises(BrokerUnreachable) as error:
        call()
    assert error.value.code == code, error.value
    assert cause in error.value.detail, error.value
    assert passing(error.value)


def said(rig: Rig, *args: Any, **kwargs: Any) -> tuple[int, str]:
    status, headers, body = rig.raw(*args, **kwargs)
    assert ("retry-after" in headers) == (status == 503)
    return status, ErrorInformation.parse(body).detail


# -- no verdict


def test_flood_of_challenges_stores_nothing_and_takes_no_challenge_from_a_guest(rig: Rig) -> None:
    """A stranger behind the same NAT, between a guest's /auth and its /attest."""
    guest, kbs = rig.guest(), rig.kbs()
    nonce = kbs.challenge()
    for _ in range(5000):
        rig.broker.auth(Trail("127.0.0.1", "POST /kbs/v0/auth"), auth_body())
    assert len(rig.broker.sessions) == 0
    kbs.attest(nonce, guest.tee.public_jwk, guest.evidence(nonce), None)
    kbs.release(MODEL_KEY)


def test_evidence_that_no_policy_accepts_is_not_kept(rig: Rig) -> None:
    """Anyone has a genuine TD. What is kept of its session is short, few, and makes no room of a guest's."""
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    stranger = rig.guest(mr_td="ab" * 48)
    other, token = rig.kbs(), ""
    nonce = other.challenge()
    for _ in range(3):  # each time it is verified again
        again = other.attest(nonce, stranger.tee.public_jwk, stranger.evidence(nonce), None)
        assert again != token
        token = again
    assert len(rig.broker.sessions) == 2
    kept = next(s.result for s in rig.broker.sessions._by_id.values() if s.attested is None)
    assert isinstance(kept, Contraindicated)
    assert len(repr(kept)) < 2000
    kbs.release(MODEL_KEY)


@pytest.mark.parametrize(("count", "size"), [(65, 10), (20, 4000)])
def test_log_of_megabytes_is_not_signed(rig: Rig, count: int, size: int) -> None:
    guest = rig.guest()
    for i in range(count):
        guest.extend(f"o{i}", "x" * size)
    with pytest.raises(BrokerDenied, match=r"eventlog\.events"):
        guest.attest(rig.kbs())
    assert len(rig.broker.sessions) == 0


def test_full_table_is_no_verdict(rig: Rig) -> None:
    guest, kbs = serving(rig), rig.kbs()
    reattest(guest, kbs)
    rig.broker.sessions._limit = 1
    no_verdict(lambda: reattest(guest, kbs), "broker.unavailable", "session.full")
    rig.broker.sessions._limit = 2
    reattest(guest, kbs)


def test_broker_that_restarted_is_no_verdict(rig: Rig) -> None:
    guest, kbs, pending = serving(rig), rig.kbs(), rig.kbs()
    guest.attest(kbs)
    nonce = pending.challenge()
    object.__setattr__(rig.broker, "sessions", Sessions(300))
    no_verdict(kbs.lease, "broker.session", "session.unknown")
    evidence = guest.evidence(nonce)
    no_verdict(lambda: pending.attest(nonce, guest.tee.public_jwk, evidence, None), "broker.session", "session.unknown")
    reattest(guest, kbs)


@pytest.mark.parametrize("text", [None, "", "version: 1\n", "{", "\x00", "a: 1\na: 2\n"])
def test_unusable_rules_release_nothing_and_are_no_verdict(rig: Rig, text: str | None) -> None:
    booting, serves = (rig.guest(), rig.kbs()), (serving(rig), rig.kbs())
    booting[0].attest(booting[1])
    serves[0].attest(serves[1])
    path = rig.directory / "policy.yaml"
    path.unlink() if text is None else path.write_text(text)
    no_verdict(lambda: booting[1].release(MODEL_KEY), "broker.unavailable", "rules.")
    no_verdict(lambda: booting[1].certify(booting[0].request()), "broker.unavailable", "rules.")
    no_verdict(serves[1].lease, "broker.unavailable", "rules.")
    no_verdict(lambda: reattest(*serves), "broker.unavailable", "rules.")
    refused = [(d, c.partition(".")[0]) for d, c in rig.decisions()[2:]]
    assert refused == [("refused", "rules")] * 4
    assert "released" not in dict(rig.decisions())


def test_answer_without_a_verdict_tells_strangers_no_path(rig: Rig) -> None:
    guest = rig.guest()
    token = guest.attest(rig.kbs())
    (rig.directory / "policy.yaml").unlink()
    answer = said(rig, "GET", f"{PREFIX}/resource/{MODEL_KEY}", Authorization=f"Bearer {token}")
    assert answer == (503, "Plugin internal error: rules.file")


def test_disk_that_is_full_releases_nothing_and_is_no_verdict(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    with rig.broker.audit._database.write() as db:
        for table in ("audit", "stranger"):
            db.execute(f"CREATE TRIGGER full_{table} BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END")
    no_verdict(lambda: kbs.release(MODEL_KEY), "broker.unavailable", "broker.fault")
    no_verdict(lambda: rig.guest().attest(kbs), "broker.unavailable", "broker.fault")


def test_expired_collateral_of_the_broker_is_no_verdict(rig: Rig) -> None:
    (rig.directory / "collateral" / "simulated.json").write_text(json.dumps(rig.intel.collateral(days=-1)))
    no_verdict(lambda: serving(rig).attest(rig.kbs()), "broker.unavailable", "collateral.expired")
    assert rig.decisions() == [("refused", "collateral.expired")]


@pytest.mark.parametrize("half", [None, "", '{"tcb_info"'])
def test_collateral_that_is_lost_goes_on_with_its_last_good_set(rig: Rig, half: str | None) -> None:
    """`fetch > file` empties the file for as long as it runs."""
    guest, kbs, path = serving(rig), rig.kbs(), rig.directory / "collateral" / "simulated.json"
    reattest(guest, kbs)
    path.unlink() if half is None else path.write_text(half)
    reattest(guest, kbs)
    path.write_text(json.dumps(rig.intel.collateral(days=-1)))  # a good one replaces it
    no_verdict(lambda: guest.attest(kbs), "broker.unavailable", "collateral.expired")


def test_collateral_that_the_broker_never_had_is_no_verdict(rig: Rig) -> None:
    (rig.directory / "collateral" / "simulated.json").write_text("")
    no_verdict(lambda: serving(rig).attest(rig.kbs()), "broker.unavailable", "collateral.fmspc")
    assert rig.decisions() == [("refused", "collateral.fmspc")]


class Faulty(Exception):
    """Of no family of ours."""


@pytest.mark.parametrize("error", [Faulty, RecursionError, MemoryError, TypeError, sqlite3.OperationalError])
def test_unexpected_exception_is_no_verdict_and_says_its_type_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    def fail(now: int) -> None:
        raise error("secret text")

    guest, kbs = serving(rig), rig.kbs()
    with monkeypatch.context() as broken:
        broken.setattr(rig.broker.collateral, "current", fail)
        no_verdict(lambda: guest.attest(kbs), "broker.unavailable", "broker.fault")
    record = rig.broker.audit.records()[-1]
    assert (record.decision, record.code, record.detail) == ("refused", "broker.fault", error.__name__)
    lines = [r.getMessage() for r in caplog.records if "broker.failed" in r.getMessage()]
    assert len(lines) == 1
    assert error.__name__ in lines[0]
    assert "secret text" not in caplog.text
    reattest(guest, kbs)


def test_nonce_that_is_not_ascii_is_a_denial(rig: Rig) -> None:
    _, headers, _ = rig.raw("POST", PREFIX + "/auth", auth_body())
    body = Attestation("\u00e9", Guest(rig.guest().machine).tee.public_jwk, {}, "").build()
    status, detail = said(rig, "POST", PREFIX + "/attest", body, Cookie=cookie_of(headers))
    assert (status, "session.nonce" in detail) == (401, True)


# -- denials stay verdicts


def test_denial_by_policy_is_a_verdict(rig: Rig) -> None:
    kbs = rig.kbs()
    guest = rig.guest(mr_td="ab" * 48)
    guest.cap()
    guest.attest(kbs)
    with pytest.raises(BrokerDenied) as error:
        kbs.lease()
    assert not passing(error.value)
    assert "appraisal.mr-td" in error.value.detail


# -- one boot, one key


def test_second_session_of_a_boot_gets_no_key_after_released(rig: Rig) -> None:
    """Both attest before `released`; the first takes the key, the guest measures `released`, the second asks."""
    guest, first, second, third = rig.guest(), rig.kbs(), rig.kbs(), rig.kbs()
    guest.attest(first)
    guest.attest(second)
    nonce = third.challenge()
    early = guest.evidence(nonce)
    first.release(MODEL_KEY)
    guest.cap()
    with pytest.raises(BrokerDenied, match=r"session\.spent"):
        second.release(MODEL_KEY)
    with pytest.raises(BrokerDenied, match=r"session\.spent"):
        third.attest(nonce, guest.tee.public_jwk, early, None)
    reattest(guest, rig.kbs())  # what serves goes on
    rig.guest().attest(second)  # and so does another boot
    second.release(MODEL_KEY)


def test_token_that_a_serving_guest_publishes_opens_nothing(rig: Rig) -> None:
    token = serving(rig).attest(rig.kbs())
    for path in ("resource/default/any/1", "external/antechamber/lease"):
        status, detail = said(rig, "GET", f"{PREFIX}/{path}", Authorization=f"Bearer {token}")
        assert (status, "session.token" in detail) == (401, True)


# -- memory, disk, time


def test_bodies_count_until_they_are_decided(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of one address is taken by a body that is being decided; another address has its own."""
    monkeypatch.setattr("antechamber.broker.server.MAX_IN_FLIGHT_PER_PEER", 10_000)
    assert said(rig, "POST", PREFIX + "/auth", b" " * 20_000) == (503, "Plugin internal error: broker.busy")
    deciding, go_on = threading.Event(), threading.Event()
    auth = type(rig.broker).auth

    def slow(broker: object, trail: Trail, body: bytes) -> object:
        if len(body) > 6000:
            deciding.set()
            go_on.wait(10)
        return auth(broker, trail, body)  # type: ignore[arg-type]

    monkeypatch.setattr(type(rig.broker), "auth", slow)
    answers: list[int] = []
    body = auth_body() + b" " * 7000
    thread = threading.Thread(target=lambda: answers.append(rig.raw("POST", PREFIX + "/auth", body)[0]))
    thread.start()
    deciding.wait(10)
    status, _, _ = rig.raw("POST", PREFIX + "/auth", auth_body() + b" " * 5000)
    go_on.set()
    thread.join()
    assert (status, answers) == (503, [200])
    assert rig.raw("POST", PREFIX + "/auth", auth_body() + b" " * 5000)[0] == 200  # all is given back


def test_few_attestations_are_verified_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, at_once, lock = [], [0], threading.Lock()

    def slow(broker: object, trail: Trail, cookie: str, body: bytes) -> str:
        with lock:
            at_once[0] += 1
            seen.append(at_once[0])
        time.sleep(0.1)
        with lock:
            at_once[0] -= 1
        return "a.b.c"

    monkeypatch.setattr(type(rig.broker), "attest", slow)

    def ask() -> None:
        _, headers, _ = rig.raw("POST", PREFIX + "/auth", auth_body())
        rig.raw("POST", PREFIX + "/attest", b"{}", Cookie=cookie_of(headers))

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(seen), max(seen) <= 4) == (10, True)


@pytest.mark.parametrize("where", ["body", "additional", "escaped"])
def test_json_of_very_many_values_is_not_built(rig: Rig, where: str) -> None:
    """8 MiB of `[{},{},..]` takes hundreds once built."""
    _, headers, body = rig.raw("POST", PREFIX + "/auth", auth_body())
    nonce, many = json.loads(body)["nonce"], "[" + "{}," * 30_000 + "{}]"
    primary, additional = (json.loads(many), "") if where == "body" else ([], many)
    raw = Attestation(nonce, rig.guest().tee.public_jwk, primary, additional).build()
    if where == "escaped":
        raw = raw.replace(b"{},", rb"\u007b\u007d\u002c")
    status, detail = said(rig, "POST", PREFIX + "/attest", raw, Cookie=cookie_of(headers))
    assert (status, "kbs.structure" in detail) == (401, True)


def test_refusals_of_strangers_do_not_fill_the_disk(rig: Rig) -> None:
    rig.broker.audit._strangers = 20
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    kbs.release(MODEL_KEY)
    for i in range(50):
        rig.raw("GET", f"{PREFIX}/resource/a/b/{i}", Cookie="kbs-session-id=" + "0" * 32)
        rig.raw("POST", PREFIX + "/auth", auth_body("sample"))
    with pytest.raises(AgentError):
        kbs.release(MODEL_KEY)  # a guest's own refusal is kept
    decisions = rig.decisions()
    assert decisions[:2] == [("attested", ""), ("released", "")]
    assert decisions[-1] == ("refused", "session.spent")
    assert len(decisions) == 3 + 20


def test_decisions_on_one_known_guest_do_not_fill_the_disk(rig: Rig) -> None:
    """A guest that was broken into is still known: what it asks for over and over goes where strangers' records go."""
    rig.broker.audit._strangers = 20
    kbs, other = rig.kbs(), rig.kbs()
    rig.guest().attest(kbs)
    kbs.release(MODEL_KEY)
    serving(rig).attest(other)
    for _ in range(100):
        with pytest.raises(AgentError):
            kbs.release(MODEL_KEY)
        other.lease()
    decisions = Counter(rig.decisions())
    appended = 2 * audit.MAX_PER_GUEST  # it may have been two minutes
    assert audit.MAX_PER_GUEST <= decisions["refused", "session.spent"] <= appended + 20
    assert audit.MAX_PER_GUEST <= decisions["leased", ""] <= appended + 20
    assert decisions["refused", "session.spent"] + decisions["leased", ""] <= 2 * appended + 20
    assert decisions["released", ""] == 1


def test_evidence_that_no_policy_accepts_does_not_fill_the_disk(rig: Rig) -> None:
    rig.broker.audit._strangers = 2
    for _ in range(4):
        rig.guest(mr_td="ab" * 48).attest(rig.kbs())
    assert rig.decisions() == [("attested", "")] * 2


def test_body_that_never_ends_is_no_verdict(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antechamber.broker.server.BODY_TIMEOUT_S", 0.2)
    tls = ssl.create_default_context(cafile=str(rig.directory / "broker-ca.pem"))
    connection = HTTPSConnection(rig.url.removeprefix("https://"), context=tls, timeout=10)
    connection.putrequest("POST", PREFIX + "/auth")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    assert connection.getresponse().status == 503
    connection.close()


def test_head_that_never_ends_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antechamber.broker.wire.HEAD_TIMEOUT_S", 0.3)

    with running(tmp_path / "broker") as rig:
        tls = ssl.create_default_context(cafile=str(rig.directory / "broker-ca.pem"))
        connection = HTTPSConnection(rig.url.removeprefix("https://"), context=tls, timeout=10)
        connection.connect()
        connection.sock.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert connection.sock.recv(100) == b""
        connection.close()


def dialled(rig: Rig, source: str = "127.0.0.1", receive: int | None = None) -> ssl.SSLSocket:
    """From an address; `receive`: bytes of the socket's buffer."""
    tls = ssl.create_default_context(cafile=str(rig.directory / "broker-ca.pem"))
    host, _, port = rig.url.removeprefix("https://").partition(":")
    link = socket.socket()
    link.settimeout(10)
    if receive is not None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    link.bind((source, 0))
    link.connect((host, int(port)))
    return tls.wrap_socket(link, server_hostname=host)


def sent(link: ssl.SSLSocket, fields: int, size: int) -> int:
    """How many header fields of `size` bytes the broker took before it hung up."""
    link.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    try:
        for number in range(fields):
            link.sendall(b"X-%d: " % number + bytes(size).replace(b"\0", b"a") + b"\r\n")
            time.sleep(0.01)
    except OSError:
        return number
    return fields


def test_heads_are_bounded_before_they_end(rig: Rig) -> None:
    """128 fields of 512 KiB, on 64 connections of one address, would be 4 GiB."""
    with dialled(rig) as link:
        assert sent(link, 100, 400 << 10) < 30
    with dialled(rig) as link:
        link.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Token: " + b"a" * (300 << 10) + b"\r\n\r\n")
        answer = link.recv(4096)  # a large head is answered, and its connection ends
        assert b" 200 " in answer.partition(b"\r\n")[0]
        assert b"connection: close" in answer.lower()


def test_heads_sent_ahead_end_the_connection(rig: Rig) -> None:
    """Each would wait in memory behind a slow answer."""
    asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    large = asked + b"X: " + b"a" * (100 << 10) + b"\r\n\r\n"
    with dialled(rig) as link:
        link.sendall(asked + b"\r\n" + large * 3)
        answers = b""
        while chunk := link.recv(4096):
            answers += chunk
    assert 1 <= answers.count(b" 200 ") <= 2, answers


def test_large_heads_of_all_connections_have_one_budget(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antechamber.broker.heads.MAX_LARGE", 300 << 10)
    with dialled(rig) as first, dialled(rig) as second:
        assert sent(first, 1, 250 << 10) == 1
        time.sleep(0.2)
        assert sent(second, 20, 100 << 10) < 20
        assert rig.raw("GET", "/healthz")[0] == 200  # a small head is nobody's but its own
    serves = serving(rig), rig.kbs()
    reattest(*serves)


def test_unusable_rules_keep_no_request_in_memory(rig: Rig) -> None:
    """One error raised for every request would hold the frames of all of them, each with a body of up to 8 MiB."""
    (rig.directory / "policy.yaml").write_text("{")
    guest = rig.guest()
    for _ in range(3):
        no_verdict(lambda: guest.attest(rig.kbs()), "broker.unavailable", "rules.")
    with pytest.raises(ConfigError) as error:
        rig.broker.rules.current()
    frames = [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]
    assert "attest" not in frames


def test_audit_prints_nothing_that_a_terminal_would_obey(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, _ = rig.raw("GET", PREFIX + "/resource/a%1b%5b2Jb%9bc", Cookie="kbs-session-id=00")
    assert status == 401
    assert cli.main(["broker", "audit", str(rig.directory)]) == 0
    shown = capsys.readouterr().out
    assert "a?[2Jb" in shown
    assert "kbs.path" in shown
    assert shown.replace("\n", "").isprintable()


def test_answer_that_nobody_reads_is_hung_up_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is hung up on, it stays for ever: 64 addresses would hold all connections."""
    monkeypatch.setattr("antechamber.broker.listener.UNREAD_S", 0.3)
    asked = f"GET {PREFIX}/external/antechamber/collateral?nonce={'00' * 32} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with dialled(rig, receive=4096) as link:
        link.sendall(asked * 400)
        time.sleep(2)
        came = 0
        with contextlib.suppress(OSError):
            while chunk := link.recv(65536):
                came += len(chunk)
    assert came < 400 * 12_000, "not hung up"


def test_few_addresses_that_send_slowly_keep_nobody_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antechamber.broker.server.MAX_IN_FLIGHT", 200_000)
    head = f"POST {PREFIX}/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 60001\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(dialled(rig, source=f"127.0.0.{2 + n % 3}")) for n in range(6)]
        for link in slow:
            link.sendall(head + b" " * 30_000)
        time.sleep(0.3)
        guest, kbs = serving(rig), rig.kbs()
        reattest(guest, kbs)
        assert rig.decisions()[-1] == ("leased", "")
        hung_out = [d for d in rig.decisions() if d == ("refused", "broker.busy")]
        assert hung_out
        reattest(guest, kbs)  # and what they held is given back
