"""The simulated machine keeps the kernel's and the driver's rules."""

import errno
import hashlib

import pytest

from antechamber.errors import ConfigError
from antechamber.evidence.eventlog import parse_log, replay
from antechamber.simulator.intel import IntelPki
from antechamber.simulator.knobs import Knobs
from antechamber.simulator.machine import INVALID_ARGUMENT, NOT_SUPPORTED, Machine, NvmlRefusal
from antechamber.simulator.nvidia import NvidiaPki

INTEL, NVIDIA = IntelPki(seed=bytes(32)), NvidiaPki(seed=bytes(32))


def machine(*settings: str) -> Machine:
    return Machine(INTEL, NVIDIA, Knobs.parse(settings))


def test_ccel_replays_to_the_registers() -> None:
    m = machine()
    assert replay(parse_log(m.ccel()))[:3] == tuple(m.read(r) for r in ("rtmr0", "rtmr1", "rtmr2"))
    assert m.read("rtmr3") == bytes(48)


def test_extend_hashes_and_refuses_when_the_size_is_not_48() -> None:
    m = machine()
    m.extend_rtmr3(b"\1" * 48)
    assert m.read("rtmr3") == hashlib.sha384(bytes(48) + b"\1" * 48).digest()
    with pytest.raises(OSError) as refused:
        m.extend_rtmr3(b"\1" * 32)
    assert refused.value.errno == errno.EINVAL


def test_quote_carries_report_data_and_registers_and_is_counted() -> None:
    m = machine("mr_config_id=" + "ab" * 48)
    quote = m.quote(bytes(range(64)))
    assert quote[48 + 520 : 48 + 584] == bytes(range(64))
    assert quote[48 + 184 : 48 + 232] == b"\xab" * 48
    assert (m.stats.quotes, m.stats.quote_s > 0) == (1, True)
    m.reset()
    assert m.stats.quotes == 0


@pytest.mark.parametrize(("settings", "report_data"), [((), bytes(63)), (("quote_errno=22",), bytes(64))])
def test_quote_fails_with_einval(settings: tuple[str, ...], report_data: bytes) -> None:
    with pytest.raises(OSError) as refused:
        machine(*settings).quote(report_data)
    assert refused.value.errno == errno.EINVAL


def test_ready_state_is_terminal_when_taken_back() -> None:
    m = machine()
    m.set_ready(False)  # harmless before
    m.set_ready(True)
    m.set_ready(False)
    with pytest.raises(NvmlRefusal) as refused:
        m.set_ready(True)
    assert refused.value.code == INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("setting", "protected"),
    [("cc=true", True), ("cc=false", False), ("devtools=true", False), ("multi_gpu=protected-pcie", True)],
)
def test_mode_is_protected_only_when_cc_is(setting: str, protected: bool) -> None:
    assert machine(setting).mode().protected is protected


def test_report_is_not_supported_when_cc_is_off() -> None:
    with pytest.raises(NvmlRefusal) as refused:
        machine("cc=false").collect(bytes(32))
    assert refused.value.code == NOT_SUPPORTED


def test_blackwell_has_the_same_root() -> None:
    (gpu,) = machine("arch=BLACKWELL").collect(bytes(32))
    assert gpu.arch == "BLACKWELL"
    assert gpu.certificate.decode().endswith(NVIDIA.root_pem)


@pytest.mark.parametrize(
    "setting", ["nonsense=1", "debug", "debug=maybe", "gpus=x", "gpus=9", "arch=VOLTA", "mr_td=ff"]
)
def test_knobs_refuse(setting: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Knobs.parse([setting])
    assert refused.value.code == "simulator.knob"


def test_knobs_survive_a_round_trip() -> None:
    knobs = Knobs.parse(["debug=yes", "quote_s=1.5", "gpus=8", "swap=/dev/vdb"])
    assert Knobs.parse(knobs.settings()) == knobs
