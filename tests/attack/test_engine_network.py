"""An engine that calls out: it has a network of its own with nothing in it but loopback, or it does not start."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from antechamber.engine import confined, process
from antechamber.engine.catalog import Launch
from antechamber.engine.process import Network

TRIES = """
import os, socket, threading, time
def outcome(call):
    try:
        call()
    except OSError as e:
        return type(e).__name__
    return "connected"
own = socket.create_server(("127.0.0.1", 0))
said = {{
    "listener": outcome(lambda: socket.create_connection(("127.0.0.1", {port}), timeout=2)),
    "abstract": outcome(lambda: socket.socket(socket.AF_UNIX).connect("\\0{abstract}")),
    "address": outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 53))),
    "itself": outcome(lambda: socket.create_connection(own.getsockname(), timeout=2)),
    "interfaces": [name for _, name in socket.if_nameindex()],
}}
open("said.part", "w").write(repr(said))
os.rename("said.part", "said")
time.sleep(60)
"""


@dataclass
class Outside:
    """Listeners in the agent's network, on TCP and on an abstract socket, and who came."""

    port: int
    abstract: str
    sockets: list[socket.socket] = field(repr=False)

    def callers(self) -> int:
        found = 0
        for listening in self.sockets:
            listening.settimeout(0.3)
            try:
                listening.accept()[0].close()
                found += 1
            except TimeoutError:
                continue
        return found


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    tcp, unix, name = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX), f"outside-{tmp_path.name}"
    unix.bind(f"\0{name}")
    unix.listen()
    yield Outside(tcp.getsockname()[1], name, [tcp, unix])
    tcp.close()
    unix.close()


def calling(tmp_path: Path, outside: Outside) -> Launch:
    code = TRIES.format(port=outside.port, abstract=outside.abstract)
    argv = (sys.executable, "-I", "-c", code)
    return Launch(
        kind="fake",
        image="",
        argv=argv,
        env={"LANG": "C.UTF-8"},
        cwd=str(tmp_path / "home"),
        socket="",
        transport="unix",
    )


def said_by(launch: Launch, network: Network) -> dict[str, object]:
    engine = process.start(launch, network=network)
    try:
        return told(Path(launch.cwd))
    finally:
        engine.stop(grace_s=0.0)


def told(home: Path) -> dict[str, object]:
    deadline = time.monotonic() + 20
    while not (home / "said").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return dict(eval((home / "said").read_text()))


@pytest.mark.netns
def test_engine_that_calls_out_reaches_nobody(tmp_path: Path, outside: Outside) -> None:
    said = said_by(calling(tmp_path, outside), "own")
    assert outside.callers() == 0
    assert said["itself"] == "connected"
    assert [said[k] for k in ("listener", "abstract", "address")] == ["ConnectionRefusedError"] * 2 + ["OSError"]
    assert said["interfaces"][0] == "lo"  # type: ignore[index]


def test_engine_in_the_hosts_network_reaches_the_listener(tmp_path: Path, outside: Outside) -> None:
    """The control: the same engine, where the configuration says so in so many words."""
    said = said_by(calling(tmp_path, outside), "host")
    assert (said["listener"], said["abstract"], said["itself"]) == ("connected",) * 3
    assert outside.callers() == 2


@pytest.mark.netns
def test_engine_that_the_process_becomes_reaches_nobody(tmp_path: Path, outside: Outside) -> None:
    """`antechamber exec`."""
    launch = calling(tmp_path, outside)
    code = f"""
from antechamber.engine import process
from antechamber.engine.catalog import Launch
process.replace(Launch.from_json({launch.to_json()!r}), apart_from={confined.network()})
"""
    with subprocess.Popen([sys.executable, "-c", code]) as engine:
        try:
            said = told(Path(launch.cwd))
        finally:
            engine.kill()
    assert outside.callers() == 0
    assert said["listener"] == "ConnectionRefusedError"


NO_NAMESPACES = """
import ctypes, struct, sys
# seccomp: unshare(2) is refused, as in a container without user namespaces. Source: seccomp(2), bpf(4)
number = {"x86_64": 272, "aarch64": 97}[__import__("os").uname().machine]
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("HBBI", *rule) for rule in rules)
buffer = ctypes.create_string_buffer(code)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_void_p)]
program = Program(len(rules), ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program)) == 0
"""


@pytest.mark.parametrize("how", ["start", "replace"])
def test_engine_does_not_start_where_no_network_can_be_made_for_it(tmp_path: Path, how: str) -> None:
    home, ran = tmp_path / "home", tmp_path / "ran"
    argv = (sys.executable, "-I", "-c", f"open({str(ran)!r}, 'w')")
    launch = Launch(kind="fake", image="", argv=argv, env={}, cwd=str(home), socket="", transport="unix")
    call = {"start": "process.start(launch)", "replace": "process.replace(launch, apart_from=confined.network())"}[how]
    code = f"""{NO_NAMESPACES}
from antechamber.engine import confined, process
from antechamber.engine.catalog import Launch
from antechamber.errors import EngineFailed
launch = Launch.from_json({launch.to_json()!r})
try:
    {call}
except EngineFailed as e:
    print(e.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "engine.network\n", done.stderr
    assert not ran.exists()


GOES_BACK = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
done = -1
for who in (os.getppid(), 1):
    try:
        done = max(done, libc.setns(os.open(f"/proc/{who}/ns/net", os.O_RDONLY), 0x40000000))
    except OSError:
        continue
open("said.part", "w").write(repr({"back": done}))
os.rename("said.part", "said")
time.sleep(60)
"""


@pytest.mark.netns
def test_engine_cannot_go_back(tmp_path: Path) -> None:
    """Into the namespace of the process that started it. Root could: `engine.user` is what keeps it."""
    root = os.geteuid() == 0
    for path in (tmp_path, *tmp_path.parents) if root else ():  # the test's own directories are private to root
        if path.stat().st_mode & 0o111 != 0o111:
            path.chmod(0o755)
    argv = ("/usr/bin/python3" if root else sys.executable, "-I", "-c", GOES_BACK)
    home = str(tmp_path / "home")
    launch = Launch(kind="fake", image="", argv=argv, env={}, cwd=home, socket="", transport="unix")
    engine = process.start(launch, user="nobody" if root else "", network="own")
    try:
        assert told(Path(home)) == {"back": -1}
    finally:
        engine.stop(grace_s=0.0)
