"""What a host may set around the guest, and a TD that it may launch: no key is asked for, nothing is left."""

import dataclasses
import hashlib
from collections.abc import Iterator

import pytest
from boots import Around, World, world

from antechamber.errors import AgentError
from antechamber.ports import Hardware, KeyBroker
from antechamber.simulator.intel import td_body


@pytest.fixture(scope="module")
def here() -> Iterator[World]:
    with world() as made:
        yield made


class Listening:
    """The broker's wire, and what was asked on it that Evidence could earn."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, broker: KeyBroker) -> KeyBroker:
        def noting(name: str) -> object:
            def ask(*args: object) -> object:
                self.asked.append(name)
                return getattr(broker, name)(*args)

            return ask

        return Around(broker, attest=noting("attest"), certify=noting("certify"), release=noting("release"))  # type: ignore[arg-type]


def refused(here: World, *args: object, **kwargs: object) -> str:
    """The code of a boot that must end before Evidence leaves the guest."""
    wire = Listening()
    with pytest.raises(AgentError) as caught:
        here.boot(*args, broker=wire, **kwargs)  # type: ignore[arg-type]
    assert not here.plaintext
    assert wire.asked == []
    return caught.value.code


FAULTS = {
    "cmdline": ({"cmdline": "ro init=/bin/sh"}, "host.cmdline"),
    "credential": ({"credential": "ssh.authorized_keys"}, "host.credentials"),
    "swap": ({"swap": "/dev/vdb"}, "host.swap"),
    "core": ({"core_pattern": "core"}, "host.core"),
    "ptrace": ({"ptrace_scope": 0}, "host.ptrace"),
    "kexec": ({"kexec_disabled": False}, "host.kexec"),
    "anchor": ({"image_variant": "prod"}, "host.anchor"),
    "persistenced": ({"persistenced": False}, "gpu.persistenced"),
    "registry": ({"registry_dwords": "RmConfidentialCompute=0x4"}, "gpu.registry"),
    "inventory": ({"gpus": 2, "multi_gpu": "nvle"}, "gpu.inventory"),
    "ready": ({"ready": True}, "gpu.ready"),
    "cc off": ({"cc": False}, "gpu.cc-mode"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_machine_that_its_host_set_wrong_is_refused(here: World, name: str) -> None:
    knobs, code = FAULTS[name]
    assert refused(here, here.machine(**knobs)) == code


def test_engine_that_may_call_out_is_refused_in_production(here: World) -> None:
    config = here.config(engine={"kind": "builtin", "network": "host"})
    with pytest.raises(AgentError) as caught:
        here.boot(here.machine(image_variant="prod"), config=config)
    assert "[engine.network]" in caught.value.detail  # beside the simulated anchor


def test_devtools_gpu_is_refused_though_it_hides_that_it_is_ready(here: World) -> None:
    machine = here.machine(devtools=True)
    machine._ready = False
    assert refused(here, machine) == "gpu.cc-mode"


def test_runtime_directory_on_a_disk_is_refused(here: World) -> None:
    """Plaintext on tmpfs, or nowhere."""

    def on_disk(hw: Hardware) -> Hardware:
        return dataclasses.replace(hw, host=Around(hw.host, in_memory=lambda path: False))

    assert refused(here, hardware=on_disk) == "host.runtime-dir"


SEPT_VE_DISABLE = 1 << 28
WEAK = {
    "debug": (1, "tdx.debug"),
    "profiling": (1 << 4, "tdx.profiling"),
    "migratable": (1 << 29, "tdx.migratable"),
    "service": (1 << 17, "tdx.service-td"),
    "reserved": (1 << 16, "tdx.attributes"),
}


@pytest.mark.parametrize("name", WEAK)
def test_no_key_is_asked_for_by_a_td_that_its_host_launched_weak(here: World, name: str) -> None:
    bit, code = WEAK[name]
    assert refused(here, hardware=launched(here, td_attributes=(SEPT_VE_DISABLE | bit).to_bytes(8, "little"))) == code


def test_no_key_is_asked_for_by_a_td_whose_host_may_inject_exceptions(here: World) -> None:
    assert refused(here, hardware=launched(here, td_attributes=bytes(8))) == "tdx.sept-ve"


def test_no_key_is_asked_for_by_a_td_with_state_unknown_to_tdx(here: World) -> None:
    assert refused(here, hardware=launched(here, xfam=(0x0602E7 | 1 << 20).to_bytes(8, "little"))) == "tdx.xfam"


def launched(here: World, **fields: bytes) -> object:
    """Hardware whose TD has these fields in its quote."""

    def around(hw: Hardware) -> Hardware:
        def quote(data: bytes) -> bytes:
            rtmr = tuple(hw.measurements.read(f"rtmr{n}") for n in range(4))  # type: ignore[arg-type]
            return here.rig.intel.quote_v4(td_body(report_data=data, rtmr=rtmr, **fields))  # type: ignore[arg-type]

        return dataclasses.replace(hw, quotes=Around(hw.quotes, quote=quote))

    return around


INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"antechamber.toml" = \'{}\'\n'


def init_data(here: World, settings: str) -> dict[str, object]:
    """A TD that was launched with exactly this text, and a configuration that reads it."""
    text = INIT_DATA.format(settings)
    path = here.root / "init.toml"
    path.write_text(text)
    bound = hashlib.sha384(text.encode()).hexdigest()
    return {"config": here.config(init_data={"file": str(path)}), "machine": here.machine(mr_config_id=bound)}


@pytest.mark.parametrize("key", ["COLLATERAL_SIGNER", "trust", "guest", "engine", "gpus"])
def test_init_data_key_outside_the_list_is_refused_though_mrconfigid_binds_it(here: World, key: str) -> None:
    given = init_data(here, f'{key} = "x"')
    assert refused(here, given["machine"], config=given["config"]) == "initdata.key"


def test_tls_outside_the_enclave_is_refused_though_mrconfigid_binds_it(here: World) -> None:
    given = init_data(here, "TLS_INSIDE_ENCLAVE = false")
    assert refused(here, given["machine"], config=given["config"]) == "initdata.tls"
