"""A guest whose watch hangs, dies or ages ends; what it hands over goes to its own parts only."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boots import World, world

from antechamber.boot import serve
from antechamber.boot.ending import Stop
from antechamber.boot.handover import AgentServer, Handover, ask
from antechamber.config import WatchConfig
from antechamber.engine import process
from antechamber.engine.catalog import Launch
from antechamber.engine.orphans import adopt_orphans, end_descendants
from antechamber.engine.process import EngineProcess
from antechamber.errors import AgentError, AppraisalRefused, BrokerUnreachable


@pytest.fixture(scope="module")
def here() -> Iterator[World]:
    with world() as made:
        yield made


class Watched:
    """An attestor as the watch sees it: each reattestation does what the test says."""

    def __init__(self, reattest: Any, age_s: float | None = 0.0) -> None:
        self._do, self._age = reattest, age_s

    def reattest(self) -> None:
        self._do()

    def age_s(self) -> float | None:
        return self._age


class Guest:
    """What `watch` needs of a serving guest, with an interval of no time."""

    def __init__(self, attestor: Watched, engine: EngineProcess | None = None) -> None:
        self.engine, self.gateway = engine, None
        watch = WatchConfig(interval_s=1, grace_s=600)
        config = type("Config", (), {"watch": watch})()
        settings = type("Settings", (), {"config": config})()
        self.booted = type("Booted", (), {"attestor": attestor, "settings": settings})()


def ended(attestor: Watched, engine: EngineProcess | None = None) -> str:
    """The code that `watch` ends with, within 10 s."""
    codes: list[str] = []

    def watching() -> None:
        with pytest.raises(AgentError) as caught:
            serve.watch(Guest(attestor, engine), serve.Open(), Stop())  # type: ignore[arg-type]
        codes.append(caught.value.code)

    thread = threading.Thread(target=watching, daemon=True)
    thread.start()
    thread.join(10)
    assert codes, "the guest did not end"
    return codes[0]


def raising(error: BaseException) -> Any:
    def act() -> None:
        raise error

    return act


def test_guest_ends_when_the_watch_hangs() -> None:
    assert ended(Watched(lambda: threading.Event().wait(60), age_s=700.0)) == "watch.grace"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_guest_ends_when_the_watch_dies_of_something_unforeseen() -> None:
    assert ended(Watched(raising(TypeError("unforeseen")))) == "watch.died"


def test_guest_ends_when_there_never_was_a_verdict() -> None:
    assert ended(Watched(lambda: None, age_s=None)) == "watch.grace"


def test_guest_ends_when_its_engine_is_dead(tmp_path: Path) -> None:
    """Killed from outside, or by itself: long before the verdict would age."""
    program = (sys.executable, "-c", "")
    launch = Launch(kind="fake", image="", argv=program, env={}, cwd=str(tmp_path), socket="", transport="unix")
    began = time.monotonic()
    attestor = Watched(lambda: None)
    attestor.age_s = lambda: 0.0 if time.monotonic() - began < 5 else 700.0  # type: ignore[method-assign]
    engine = process.start(launch, network="host")
    assert ended(attestor, engine) == "engine.died"
    engine.stop()


def test_guest_ends_with_the_verdicts_own_code() -> None:
    refusal = AppraisalRefused("gpu.changed", "seen", hint="do")
    assert ended(Watched(raising(refusal))) == "gpu.changed"


def test_guest_outlives_a_silent_broker_until_grace_is_over() -> None:
    def reattest() -> None:
        if time.monotonic() > later + 5:
            raise AppraisalRefused("gpu.changed", "seen", hint="do")  # or it would go on for as long as the tests run
        raise BrokerUnreachable("broker.unreachable", "seen", hint="do")

    def age_s() -> float:
        return 700.0 if time.monotonic() > later else 0.0

    later = time.monotonic() + 2.5
    silent = Watched(reattest)
    silent.age_s = age_s  # type: ignore[method-assign]
    assert ended(silent) == "watch.grace"
    assert time.monotonic() > later


@pytest.fixture
def served(here: World) -> Iterator[tuple[Path, Handover]]:
    booted = here.boot()
    handover = Handover({"part": "engine"}, {"part": "gateway"}, os.memfd_create("key"), lambda: {"ok": True})
    server = AgentServer(here.runtime_dir / "agent.sock", handover, booted.attestor)
    yield here.runtime_dir / "agent.sock", handover
    server.end()


def code_of(path: Path, op: str, **arguments: str) -> str:
    with pytest.raises(AgentError) as caught:
        ask(path, op, **arguments)
    return caught.value.code


@pytest.mark.parametrize("part", ["engine", "gateway"])
def test_part_is_handed_over_once(served: tuple[Path, Handover], part: str) -> None:
    path, handover = served
    handover.admitted.set()
    assert ask(path, part)["part"] == part
    assert code_of(path, part) in ("handover.spent", "handover.process")
    assert (handover.key_fd is None) == (part == "gateway")


def test_key_is_not_handed_to_the_engine_or_to_what_it_starts(served: tuple[Path, Handover]) -> None:
    """Under `antechamber boot` they may share a user, and the engine is there first."""
    path, handover = served
    ask(path, "engine")
    handover.admitted.set()
    assert code_of(path, "gateway") == "handover.process"
    program = f"from antechamber.cli import main; raise SystemExit(main(['gateway', '--socket', {str(path)!r}]))"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert child.returncode != 0
    assert "handover.process" in child.stderr
    assert handover.key_fd is not None


def test_parts_are_handed_to_no_other_process_of_our_user_when_run_starts_them(
    served: tuple[Path, Handover],
) -> None:
    path, handover = served
    handover.expect(os.getppid())
    for part in ("engine", "gateway"):
        assert code_of(path, part) == "handover.process"
    handover.expect(os.getpid())
    assert ask(path, "gateway")["part"] == "gateway"


@pytest.mark.parametrize("nonce", ["", "00", "zz" * 32, "00" * 65, "0" * 33, "AA" * 32])
def test_bundle_is_refused_when_the_nonce_is_none(served: tuple[Path, Handover], nonce: str) -> None:
    assert code_of(served[0], "bundle", nonce=nonce) == "bundle.nonce"


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"null", b"\xff\n", b'{"op":7}\n', b"x" * 70_000])
def test_agent_answers_a_refusal_to_any_line(served: tuple[Path, Handover], line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(served[0]))
        sock.sendall(line + b"\n")
        answer = json.loads(sock.makefile("rb").readline())
    assert answer["ok"] is False
    assert answer["code"] == "handover.op"


def test_socket_is_for_its_owner_only(served: tuple[Path, Handover]) -> None:
    assert served[0].stat().st_mode & 0o077 == 0


_FORKER = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    time.sleep(60)
os.wait()
print("forked", flush=True)
time.sleep(60)
"""


def test_nothing_of_an_engine_outlives_the_wiping() -> None:
    """A double fork leaves its session and its parent; the agent adopts it, and ends it."""
    program = f"""
import subprocess, sys
from antechamber.engine import process
from antechamber.engine.catalog import Launch
from antechamber.engine.orphans import adopt_orphans, end_descendants
from antechamber.engine.process import EngineProcess
adopt_orphans()
child = subprocess.Popen([sys.executable, "-c", {_FORKER!r}], stdout=subprocess.PIPE)
child.stdout.readline()
child.kill()
end_descendants()
"""
    mark = f"ANTECHAMBER_TEST_{os.getpid()}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=os.environ | {mark: "1"})
    left = [p for p in Path("/proc").glob("[0-9]*") if _has(p, mark)]
    for outlived in left:
        os.kill(int(outlived.name), signal.SIGKILL)
    assert left == []


def _has(process: Path, mark: str) -> bool:
    try:
        return mark.encode() in (process / "environ").read_bytes()
    except OSError:
        return False


def test_adopting_and_ending_are_harmless_when_there_is_no_child() -> None:
    code = "from antechamber.engine.orphans import *; adopt_orphans(); end_descendants()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert callable(adopt_orphans)
    assert callable(end_descendants)


def test_memory_of_the_agent_is_closed_to_its_users_other_processes() -> None:
    program = """
import sys
from antechamber.hardware.memory import seal_memory
seal_memory()
import ctypes
print(ctypes.CDLL(None).prctl(3), flush=True)  # PR_GET_DUMPABLE
sys.stdin.read()
"""
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sealed:
        assert sealed.stdout is not None
        assert sealed.stdout.readline() == b"0\n"
        owner = Path("/proc", str(sealed.pid), "mem").stat().st_uid
        limits = Path("/proc", str(sealed.pid), "limits").read_text()
        sealed.communicate()
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert owner == 0  # root's, whoever runs it: a process of our own uid is refused


def _stopping(number: int, body: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import os, signal, sys, time
from antechamber import log
from antechamber.boot.ending import Undo, ending
from antechamber.errors import AppraisalRefused
log.setup()
undo = Undo()
undo.push("plaintext", lambda: print("undone", flush=True))
def slow():
    os.kill(os.getpid(), {number})
    time.sleep(0.1)
{body}
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_signal_is_an_orderly_end_and_everything_is_undone(number: int) -> None:
    done = _stopping(number, "with ending(undo):\n    slow()\n    print('went on')\nprint(undo.orderly)")
    assert (done.returncode, done.stdout) == (0, "undone\nTrue\n")


def test_refusal_stands_when_a_signal_comes_while_it_is_on_its_way() -> None:
    body = """
try:
    with ending(undo):
        try:
            raise AppraisalRefused("gpu.changed", "seen", hint="do")
        finally:
            slow()
except AppraisalRefused as e:
    print(e.code, undo.orderly)
"""
    done = _stopping(signal.SIGTERM, body)
    assert done.stdout == "undone\ngpu.changed False\n"


def test_undoing_goes_on_when_signals_rain() -> None:
    body = """
for i in range(3):
    undo.push(f"step {i}", slow)
with ending(undo):
    slow()
"""
    done = _stopping(signal.SIGTERM, body)
    assert (done.returncode, done.stdout) == (0, "undone\n")


def test_second_signal_does_not_cut_a_cleaning_short_that_the_first_began() -> None:
    body = """
with ending(undo):
    try:
        slow()
    finally:
        slow()
        print("cleaned")
"""
    assert _stopping(signal.SIGTERM, body).stdout == "cleaned\nundone\n"


def test_stop_is_not_forgotten_when_something_swallows_it() -> None:
    body = """
with ending(undo) as stop:
    try:
        slow()
    except BaseException:
        pass
    stop.require_none()
    print("went on")
"""
    assert _stopping(signal.SIGTERM, body).stdout == "undone\n"


def test_library_that_catches_exceptions_does_not_swallow_a_stop() -> None:
    body = "with ending(undo):\n    try:\n        slow()\n    except Exception:\n        print('swallowed')\n"
    assert _stopping(signal.SIGTERM, body).stdout == "undone\n"


def test_step_that_fails_hides_neither_the_others_nor_the_reason() -> None:
    body = """
def failing():
    raise OSError(5, "Input/output error", "/model")
undo.push("engine", failing)
try:
    with ending(undo):
        raise AppraisalRefused("gpu.changed", "seen", hint="do")
except AppraisalRefused as e:
    print(e.code)
"""
    done = _stopping(signal.SIGTERM, body)
    assert done.stdout == "undone\ngpu.changed\n"
    assert "undo.failed" in done.stderr
