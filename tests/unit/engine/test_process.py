import contextlib
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from engines import NETWORK

from antechamber.engine import process
from antechamber.engine.catalog import Launch
from antechamber.errors import EngineFailed

ENV = {"PATH": "/usr/bin:/bin", "ONLY": "this"}


def python(tmp_path: Path, code: str, **changes: object) -> Launch:
    argv = (sys.executable, "-I", "-c", code)
    home, sock = str(tmp_path / "engine" / "home"), str(tmp_path / "engine" / "engine.sock")
    launch = Launch(kind="fake", image="", argv=argv, env=ENV, cwd=home, socket=sock, transport="unix")
    return replace(launch, **changes)  # type: ignore[arg-type]


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text()


def test_start_gives_the_environment_directory_and_umask_of_the_launch(tmp_path: Path) -> None:
    code = "import os; open('out','w').write(repr((dict(os.environ), os.getcwd(), os.umask(0))))"
    engine = process.start(python(tmp_path, code), network=NETWORK)
    with pytest.raises(EngineFailed):
        engine.watch(20)
    home = tmp_path / "engine" / "home"
    seen, cwd, umask = eval((home / "out").read_text())
    seen.pop("LC_CTYPE", None)  # Python's own locale coercion
    assert (seen, cwd, umask) == (ENV, str(home), 0o007)
    assert home.stat().st_mode & 0o777 == 0o700
    engine.stop()


def test_start_passes_no_descriptor_but_stdio(tmp_path: Path) -> None:
    held = fcntl.fcntl(0, fcntl.F_DUPFD, 99)  # inheritable, and nobody else's
    engine = process.start(
        python(tmp_path, "import os; open('out','w').write(repr(os.listdir('/proc/self/fd')))"), network=NETWORK
    )
    open_there = eval(wait_for(tmp_path / "engine" / "home" / "out"))
    os.close(held)
    engine.stop()
    assert str(held) not in open_there


def test_start_starts_an_engine_where_a_thousand_descriptors_are_open(tmp_path: Path) -> None:
    """select(2) takes none over 1023: what the confined program says was never heard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while (fd := os.open(os.devnull, os.O_RDONLY)) < 1024:
            stack.callback(os.close, fd)
        stack.callback(os.close, fd)
        engine = process.start(python(tmp_path, "import time; time.sleep(60)"), network=NETWORK)
        assert engine.alive
        engine.stop()


def test_start_leads_a_session_of_its_own(tmp_path: Path) -> None:
    engine = process.start(python(tmp_path, "import time; time.sleep(60)"), network=NETWORK)
    assert os.getsid(engine.pid) == os.getpgid(engine.pid) == engine.pid
    engine.stop()


def test_start_removes_a_stale_socket(tmp_path: Path) -> None:
    launch = python(tmp_path, "import time; time.sleep(60)")
    Path(launch.socket).parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(launch.socket)
    engine = process.start(launch, network=NETWORK)
    assert not Path(launch.socket).exists()
    engine.stop()


def test_start_refuses_a_file_where_the_socket_goes(tmp_path: Path) -> None:
    launch = python(tmp_path, "pass")
    Path(launch.socket).parent.mkdir()
    Path(launch.socket).write_text("precious")
    with pytest.raises(EngineFailed) as refused:
        process.start(launch, network=NETWORK)
    assert refused.value.code == "engine.start"
    assert Path(launch.socket).read_text() == "precious"


@pytest.mark.parametrize("changes", [{"argv": ("no-such-engine",)}, {"argv": ("/etc/passwd",)}])
def test_start_refuses_an_engine_that_is_not_there(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(EngineFailed) as refused:
        process.start(python(tmp_path, "", **changes), network=NETWORK)
    assert refused.value.code == "engine.start"


def test_start_refuses_an_unknown_user(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed) as refused:
        process.start(python(tmp_path, ""), user="nobody-of-that-name", network=NETWORK)
    assert refused.value.code == "engine.start"


@pytest.mark.root
def test_start_runs_as_the_user(tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents):  # the test's own directories are private to root
        if path.stat().st_mode & 0o111 != 0o111:
            path.chmod(0o755)
    code = "import os; open('out','w').write(repr((os.getuid(), os.getgroups())))"
    argv = ("/usr/bin/python3", "-I", "-c", code)
    engine = process.start(python(tmp_path, "", argv=argv), user="nobody", network=NETWORK)
    uid, groups = eval(wait_for(tmp_path / "engine" / "home" / "out"))
    engine.stop()
    assert uid != 0
    assert 0 not in groups


def test_watch_returns_while_it_lives_and_refuses_once_it_died(tmp_path: Path) -> None:
    engine = process.start(python(tmp_path, "import time; time.sleep(60)"), network=NETWORK)
    engine.watch(0.1)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineFailed) as refused:
        engine.watch(20)
    assert refused.value.code == "engine.died"
    assert engine.exit_status == -signal.SIGKILL
    engine.stop()


def test_stop_kills_a_whole_group_that_ignores_sigterm(tmp_path: Path) -> None:
    code = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    open("out", "w").write(str(child))
time.sleep(60)
"""
    engine = process.start(python(tmp_path, code), network=NETWORK)
    child = int(wait_for(tmp_path / "engine" / "home" / "out"))
    engine.stop(grace_s=0.2)
    assert engine.exit_status == -signal.SIGKILL
    assert not _runs(child)


def test_stop_kills_children_that_outlive_their_leader(tmp_path: Path) -> None:
    code = "import os, time; c = os.fork()\nif c: open('out', 'w').write(str(c))\nelse: time.sleep(60)"
    engine = process.start(python(tmp_path, code), network=NETWORK)
    child = int(wait_for(tmp_path / "engine" / "home" / "out"))
    with pytest.raises(EngineFailed):
        engine.watch(20)
    engine.stop()
    engine.stop()  # again does nothing
    assert engine.exit_status == 0
    assert not _runs(child)


def _runs(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.02)
    return True


@pytest.mark.skipif(not Path("/usr/bin/setpriv").exists(), reason="needs setpriv(1)")
def test_engine_dies_with_the_agent(tmp_path: Path) -> None:
    code = f"""
import os, signal, time
from antechamber.engine import process
from antechamber.engine.catalog import Launch
engine = process.start(Launch(kind="fake", image="", argv=("sleep", "60"), env={ENV!r},
                              cwd={str(tmp_path)!r}, socket="", transport="unix"), network={NETWORK!r})
while open(f"/proc/{{engine.pid}}/comm").read() != "sleep\\n":  # setpriv has asked for the signal by then
    time.sleep(0.01)
print(engine.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    died = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert died.returncode == -signal.SIGKILL
    assert not _runs(int(died.stdout))


def test_replace_becomes_the_engine_with_its_environment_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    engine = (
        f"import os; open({str(out)!r}, 'w').write(repr((os.getpid(), dict(os.environ), os.listdir('/proc/self/fd'))))"
    )
    launch = python(tmp_path, engine)
    code = f"""
import os
from antechamber.engine import process
from antechamber.engine.catalog import Launch
os.dup2(0, 99, inheritable=True)
print(os.getpid(), flush=True)
process.replace(Launch.from_json({launch.to_json()!r}))
"""
    ran = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, env={"SECRET": "x"})
    there, env, open_there = eval(out.read_text())
    env.pop("LC_CTYPE", None)
    assert (there, env) == (int(ran.stdout), ENV)
    assert "99" not in open_there


def test_replace_refuses_an_engine_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed) as refused:
        process.replace(python(tmp_path, "", argv=("no-such-engine",)))
    assert refused.value.code == "engine.start"
