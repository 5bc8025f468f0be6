"""One line in, one line out: the same in process and through the daemon's socket."""

import errno
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antechamber.errors import ConfigError, HardwareUnavailable
from antechamber.simulator.daemon import listening, running
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.machine import Machine, NvmlRefusal
from antechamber.simulator.nvidia import NvidiaPki
from antechamber.simulator.protocol import Remote, answer, in_process, words_of
from antechamber.simulator.standin import hardware, parse_facts
from antechamber.simulator.state import State

_MACHINE = Machine(IntelPki(seed=bytes(32)), NvidiaPki(seed=bytes(32)))


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State.open(tmp_path / "simulator")


@pytest.fixture
def machine(state: State) -> Machine:
    return state.machine(Knobs())


@given(st.text(max_size=80))
def test_answer_is_one_line_for_any_line(line: str) -> None:
    reply = answer(_MACHINE, line)
    assert reply.split(" ")[0] in ("ok", "errno", "nvml")
    assert "\n" not in reply


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("", f"errno {errno.EINVAL}"),
        ("explode", f"errno {errno.EINVAL}"),
        ("quote zz", f"errno {errno.EINVAL}"),
        ("quote 00", f"errno {errno.EINVAL}"),
        ("read mrsigner", f"errno {errno.EINVAL}"),
        ("extend rtmr9 " + "00" * 48, f"errno {errno.EINVAL}"),
        ("report 5 " + "00" * 32, "nvml 2"),
        ("gpu 5", "nvml 2"),
        ("gpu -1", "nvml 2"),
        ("mode", "ok 2 1 0 0 2 1 1 0"),
        ("set-ready 1", "ok"),
    ],
)
def test_answer_says(machine: Machine, line: str, reply: str) -> None:
    assert answer(machine, line) == reply


def test_words_of_raises_what_the_machine_did() -> None:
    assert words_of("ok a b\n") == "a b"
    with pytest.raises(NvmlRefusal):
        words_of("nvml 3\n")
    with pytest.raises(OSError) as refused:
        words_of("errno 16\n")
    assert refused.value.errno == errno.EBUSY
    with pytest.raises(OSError) as refused:
        words_of("")
    assert refused.value.errno == errno.EPROTO


def test_socket_serves_several_clients_while_a_quote_is_made(state: State) -> None:
    with listening(state.socket, state.machine(Knobs(quote_s=0.3))) as ask, ThreadPoolExecutor() as pool:
        quotes = [pool.submit(ask, "quote", "00" * 64) for _ in range(2)]
        assert ask("read", "rtmr3") == "00" * 48  # does not wait for the quote device
        assert all(quote.result() for quote in quotes)
        assert '"quotes": 2' in ask("stats")
    assert not state.socket.exists()


def test_socket_survives_a_client_that_says_nothing(state: State, machine: Machine) -> None:
    with listening(state.socket, machine) as ask:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(state.socket))
        assert ask("ready") == "0"


def test_daemon_shares_one_machine_and_ends_with_its_starter(state: State) -> None:
    with running(state, Knobs(debug=True)) as ask:
        ask("set-ready", "1")
        assert Remote(state.socket)("ready") == "1"
        ask("reset")
        assert ask("ready") == "0"
    with pytest.raises(OSError):
        ask("ready")


def test_facts_survive_the_wire(machine: Machine) -> None:
    assert parse_facts(in_process(machine)("facts")) == machine.facts()


def test_stand_ins_are_the_machine(machine: Machine) -> None:
    hw = hardware(machine)
    assert hw.quotes.quote(bytes(64))[568:632] == bytes(64)
    hw.measurements.extend_rtmr3(b"\1" * 48)
    assert hw.measurements.read("rtmr3") == machine.read("rtmr3") != bytes(48)
    assert hw.measurements.ccel() == machine.ccel()
    assert hw.gpus.mode() == machine.mode()
    assert [gpu.uuid for gpu in hw.gpus.collect(bytes(32))] == [machine.gpus[0].uuid]
    hw.gpus.set_ready()
    assert hw.gpus.ready()
    assert hw.host.facts() == machine.facts()


def test_stand_in_quotes_refuse(state: State) -> None:
    with pytest.raises(HardwareUnavailable) as refused:
        hardware(state.machine(Knobs())).quotes.quote(bytes(63))
    assert refused.value.code == "tsm.report-data"
    with pytest.raises(HardwareUnavailable) as refused:
        hardware(state.machine(Knobs(quote_errno=errno.EIO))).quotes.quote(bytes(64))
    assert refused.value.code == "tsm.io"


def test_stand_in_gpus_refuse_when_cc_is_off(state: State) -> None:
    with pytest.raises(HardwareUnavailable) as refused:
        hardware(state.machine(Knobs(cc=False))).gpus.collect(bytes(32))
    assert refused.value.code == "nvml.unsupported"


def test_state_keeps_the_vendors_keys(state: State) -> None:
    again = State.open(state.directory)
    assert state.machine(Knobs()).intel.root_der == again.machine(Knobs()).intel.root_der


def test_state_refuses_a_directory_that_others_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError) as refused:
        State.open(tmp_path)
    assert refused.value.code == "simulator.state"


def test_state_refuses_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        State.open(tmp_path / ("x" * 100))
    assert refused.value.code == "simulator.state"
