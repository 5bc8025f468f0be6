"""Attacks on a boot from the host's side of each port and from the broker's wire: no key, no plaintext."""

import dataclasses
import json
import os
import time
from collections.abc import Iterator

import pytest
from boots import Around, World, world
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from antechamber.boot.attestor import passing
from antechamber.boot.pipeline import Booted
from antechamber.broker.jwe import TeeKey, seal
from antechamber.errors import AgentError, HardwareUnavailable, PlatformUnfit
from antechamber.evidence import bundle as bundles
from antechamber.evidence.collateral import open_collateral, seal_collateral
from antechamber.evidence.eventlog import CAP, DOMAIN, ORDER, AaelEvent
from antechamber.evidence.policy import signer_key
from antechamber.ports import GpuMode, Hardware, KeyBroker

NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def here() -> Iterator[World]:
    with world() as made:
        yield made


def refused(here: World, *args: object, **kwargs: object) -> str:
    """The code of a boot that must not succeed; nothing is left of it."""
    with pytest.raises(AgentError) as caught:
        here.boot(*args, **kwargs)  # type: ignore[arg-type]
    assert not here.plaintext
    return caught.value.code


def test_boot_unlocks_when_everything_is_right(here: World) -> None:
    booted = here.boot()
    assert (booted.model.path / "weights.safetensors").read_bytes() == bytes(range(256)) * 64
    assert here.plaintext


def test_machine_without_tdx_is_one_report_and_not_a_missing_register(here: World) -> None:
    def laptop(hw: Hardware) -> Hardware:
        def absent(register: str) -> bytes:
            raise HardwareUnavailable("rtmr.absent", "no sysfs", hint="kernel 6.16")

        facts = dataclasses.replace(hw.host.facts(), tdx_guest=False, rtmr_sysfs=False, kernel="6.1.0")
        return dataclasses.replace(
            hw, measurements=Around(hw.measurements, read=absent), host=Around(hw.host, facts=lambda: facts)
        )

    with pytest.raises(PlatformUnfit) as caught:
        here.boot(hardware=laptop)
    assert caught.value.code == "host.tdx-guest"
    assert "[host.kernel]" in caught.value.detail
    assert caught.value.exit_status == 69


def watched_boot(here: World) -> tuple[Booted, Around]:
    """A booted guest, and its GPUs, whose answers can be changed later."""
    gpus: list[Around] = []

    def watched(hw: Hardware) -> Hardware:
        gpus.append(Around(hw.gpus))
        return dataclasses.replace(hw, gpus=gpus[0])

    return here.boot(hardware=watched), gpus[0]


# -- the collateral and the clock


def test_collateral_of_an_earlier_boot_is_refused_when_the_host_replays_it(here: World) -> None:
    old: list[bytes] = []

    def replaying(broker: KeyBroker) -> KeyBroker:
        def collateral(nonce: bytes) -> bytes:
            if not old:
                old.append(broker.collateral(os.urandom(32)))
            return old[0]

        return Around(broker, collateral=collateral)

    assert refused(here, broker=replaying) == "collateral.nonce"


def test_collateral_is_refused_when_another_key_signed_it(here: World) -> None:
    def forging(broker: KeyBroker) -> KeyBroker:
        def collateral(nonce: bytes) -> bytes:
            signer = signer_key((here.rig.directory / "collateral-signer.b64").read_text().strip())
            real = open_collateral(broker.collateral(nonce), signer, nonce=nonce, floor=0)
            return seal_collateral(real.tdx, time=real.time, nonce=nonce, key=Ed25519PrivateKey.generate())

        return Around(broker, collateral=collateral)

    assert refused(here, broker=forging) == "collateral.signature"


def test_time_is_refused_when_it_is_behind_the_floor(here: World) -> None:
    trust = {
        "intel": here.rig.intel.root_pem,
        "nvidia": here.rig.nvidia.root_pem,
        "collateral_signer": (here.rig.directory / "collateral-signer.b64").read_text().strip(),
        "time_floor": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600)),
    }
    assert refused(here, config=here.config(trust=trust)) == "collateral.time"


# -- the GPUs


def test_gpu_evidence_is_refused_when_it_is_over_another_nonce(here: World) -> None:
    def stale(hw: Hardware) -> Hardware:
        return dataclasses.replace(hw, gpus=Around(hw.gpus, collect=lambda nonce: hw.gpus.collect(bytes(32))))

    assert refused(here, hardware=stale) == "gpu.nonce"


def test_gpu_evidence_is_refused_when_a_gpu_is_missing(here: World) -> None:
    def hiding(hw: Hardware) -> Hardware:
        return dataclasses.replace(hw, gpus=Around(hw.gpus, collect=lambda nonce: ()))

    assert refused(here, hardware=hiding) == "gpu.count"


def test_boot_ends_without_plaintext_when_the_ready_state_does_not_take(here: World) -> None:
    def stuck(hw: Hardware) -> Hardware:
        return dataclasses.replace(hw, gpus=Around(hw.gpus, set_ready=lambda: None))

    assert refused(here, hardware=stuck) == "gpu.not-ready"


def test_ready_state_is_untouched_when_the_boot_is_refused(here: World) -> None:
    machine = here.machine(debug=True)
    assert refused(here, machine) == "tdx.debug"
    assert not machine.ready


@pytest.mark.parametrize("reads", [2, 3, 4])
def test_cc_mode_is_read_again_when_the_host_changes_it_later(here: World, reads: int) -> None:
    """Right at preflight, off at stage 6, on the other side of the collection, or before the ready state."""
    seen = 0

    def fading(hw: Hardware) -> Hardware:
        def mode() -> GpuMode:
            nonlocal seen
            seen += 1
            return hw.gpus.mode() if seen < reads else dataclasses.replace(hw.gpus.mode(), cc_feature=False)

        return dataclasses.replace(hw, gpus=Around(hw.gpus, mode=mode))

    machine = here.machine()
    assert refused(here, machine, hardware=fading) == "gpu.cc-mode"
    assert not machine.ready


def test_protected_pcie_is_refused_while_no_switch_is_verified(here: World) -> None:
    config = here.config(gpus={"count": 8})
    assert refused(here, here.machine(gpus=8, multi_gpu="protected-pcie"), config=config) == "gpu.switches"


@pytest.mark.parametrize("reads", [1, 2])
def test_bundle_is_refused_when_the_gpu_leaves_cc_mode_around_it(here: World, reads: int) -> None:
    booted, gpus = watched_boot(here)
    booted.attestor.reattest()
    on, seen = gpus.mode(), 0

    def mode() -> GpuMode:
        nonlocal seen
        seen += 1
        return on if seen < reads else dataclasses.replace(on, cc_feature=False)

    gpus._methods["mode"] = mode
    for act in (lambda: booted.attestor.bundle(NONCE), booted.attestor.reattest):
        seen = 0
        with pytest.raises(AgentError) as caught:
            act()
        assert caught.value.code == "gpu.cc-mode"


def test_nothing_is_left_of_a_boot_that_was_refused_late(here: World) -> None:
    def stuck(hw: Hardware) -> Hardware:
        return dataclasses.replace(hw, gpus=Around(hw.gpus, set_ready=lambda: None))

    assert refused(here, hardware=stuck) == "gpu.not-ready"
    assert list(here.runtime_dir.iterdir()) == []


def test_runtime_directory_that_others_can_write_is_refused(here: World) -> None:
    here.undo.run()
    here.runtime_dir.mkdir(exist_ok=True)
    here.runtime_dir.chmod(0o777)
    with pytest.raises(AgentError) as caught:
        here.boot(fresh=False)
    assert caught.value.code == "config.runtime-dir"


def test_verdict_fails_when_another_genuine_gpu_answers(here: World) -> None:
    booted, gpus = watched_boot(here)
    booted.attestor.reattest()
    others = here.machine(gpus=2)
    gpus._methods["collect"] = lambda nonce: others.collect(nonce)[1:]
    with pytest.raises(AgentError) as caught:
        booted.attestor.reattest()
    assert caught.value.code == "gpu.changed"
    with pytest.raises(AgentError) as caught:
        booted.attestor.bundle(NONCE)
    assert caught.value.code == "bundle.refused"


# -- the registers and the quote


def test_boot_is_refused_when_something_else_extended_rtmr3(here: World) -> None:
    machine = here.machine()
    machine.extend_rtmr3(bytes(48))
    assert refused(here, machine) == "rtmr.extended"


def test_boot_is_refused_when_something_extends_rtmr3_in_between(here: World) -> None:
    def racing(hw: Hardware) -> Hardware:
        def extend(digest: bytes) -> None:
            hw.measurements.extend_rtmr3(digest)
            hw.measurements.extend_rtmr3(bytes(48))

        return dataclasses.replace(hw, measurements=Around(hw.measurements, extend_rtmr3=extend))

    assert refused(here, hardware=racing) == "rtmr.race"


def test_second_boot_of_one_machine_is_refused(here: World) -> None:
    machine = here.machine()
    here.boot(machine)
    machine._ready = False  # as if the driver had been loaded again
    assert refused(here, machine) == "rtmr.extended"


def test_quote_of_another_guest_is_refused_by_the_broker(here: World) -> None:
    other = here.machine()

    def relaying(hw: Hardware) -> Hardware:
        return dataclasses.replace(hw, quotes=Around(hw.quotes, quote=other.quote))

    assert refused(here, hardware=relaying) == "broker.attest"


def test_stale_quote_is_refused_by_the_broker(here: World) -> None:
    def stale(hw: Hardware) -> Hardware:
        return dataclasses.replace(hw, quotes=Around(hw.quotes, quote=lambda data: hw.quotes.quote(bytes(64))))

    assert refused(here, hardware=stale) == "broker.attest"


def test_events_are_in_the_documented_order_and_capped_when_the_boot_is_done(here: World) -> None:
    machine = here.machine()
    booted = here.boot(machine)
    events = bundles_events(booted)
    assert [e.operation for e in events] == [*ORDER, CAP]
    assert {e.domain for e in events} == {DOMAIN}
    assert events[ORDER.index("model")].content == here.model_hash
    assert events[-1].content == events[ORDER.index("tls")].content == booted.keys.tls_event


def bundles_events(booted: object) -> tuple[AaelEvent, ...]:
    from antechamber.evidence.eventlog import parse_log, runtime_events

    return runtime_events(parse_log(booted.attestor._public.measured.log.cc_eventlog()))  # type: ignore[attr-defined]


# -- the broker's wire


def test_key_is_refused_when_it_is_sealed_to_another_key(here: World) -> None:
    def other(broker: KeyBroker) -> KeyBroker:
        return Around(broker, release=lambda path: seal(TeeKey.generate().public_jwk, bytes(32)))

    assert refused(here, broker=other) == "broker.jwe"


def test_wrong_key_unlocks_nothing(here: World) -> None:
    jwks: list[dict[str, str]] = []

    def lying(broker: KeyBroker) -> KeyBroker:
        def attest(nonce, jwk, evidence, init_data):  # type: ignore[no-untyped-def]
            jwks.append(jwk)
            return broker.attest(nonce, jwk, evidence, init_data)

        return Around(broker, attest=attest, release=lambda path: seal(jwks[-1], bytes(32)))

    assert refused(here, broker=lying) == "model.key"


def test_certificate_is_refused_when_it_is_for_another_key(here: World) -> None:
    def swapping(broker: KeyBroker) -> KeyBroker:
        def certify(request: bytes) -> bytes:
            chain = broker.certify(request)
            assert chain.startswith(b"-----BEGIN CERTIFICATE")
            return (here.rig.directory / "server.pem").read_bytes()

        return Around(broker, certify=certify)

    assert refused(here, broker=swapping) == "broker.certificate"


def test_certificate_is_refused_when_it_is_none(here: World) -> None:
    assert refused(here, broker=lambda b: Around(b, certify=lambda request: b"not PEM")) == "broker.certificate"


def test_no_key_is_asked_for_when_the_td_is_a_debug_td(here: World) -> None:
    asked: list[str] = []

    def listening(broker: KeyBroker) -> KeyBroker:
        return Around(broker, attest=lambda *a: asked.append("attest"), release=lambda p: asked.append("release"))

    assert refused(here, here.machine(debug=True), broker=listening) == "tdx.debug"
    assert asked == []


def test_init_data_is_refused_when_mrconfigid_is_not_its_digest(here: World) -> None:
    path = here.root / "init.toml"
    path.write_text('version = "0.1.0"\nalgorithm = "sha384"\n[data]\n')
    assert refused(here, config=here.config(init_data={"file": str(path)})) == "initdata.digest"


# -- after the boot


def test_verdict_fails_when_the_gpu_leaves_cc_mode(here: World) -> None:
    booted, gpus = watched_boot(here)
    booted.attestor.reattest()
    assert booted.attestor.verdict()["good"] is True
    off = dataclasses.replace(gpus.mode(), cc_feature=False)
    gpus._methods["mode"] = lambda: off
    with pytest.raises(AgentError) as caught:
        booted.attestor.reattest()
    assert caught.value.code == "gpu.cc-mode"
    assert not passing(caught.value)
    assert booted.attestor.verdict()["good"] is False


@pytest.mark.parametrize(("method", "answer", "code"), [("ready", False, "gpu.not-ready"), ("count", 0, "gpu.count")])
def test_verdict_fails_when_a_gpu_changes(here: World, method: str, answer: object, code: str) -> None:
    booted, gpus = watched_boot(here)
    gpus._methods[method] = lambda: answer
    with pytest.raises(AgentError) as caught:
        booted.attestor.reattest()
    assert caught.value.code == code


def test_verdict_fails_when_something_extends_rtmr3_later(here: World) -> None:
    machine = here.machine()
    booted = here.boot(machine)
    booted.attestor.reattest()
    machine.extend_rtmr3(bytes(48))
    with pytest.raises(AgentError) as caught:
        booted.attestor.reattest()
    assert caught.value.code == "broker.attest"
    assert booted.attestor.verdict()["good"] is False


def test_booted_guest_gets_no_model_key_again(here: World) -> None:
    """Whatever runs in it later: RTMR3 says `released`."""
    booted = here.boot()
    tee, kbs = TeeKey.generate(), here.rig.kbs()
    from antechamber.boot.identity import open_challenge
    from antechamber.evidence.composite import CompositeEvidence, report_data

    asked = open_challenge(kbs, tee)
    attestor = booted.attestor
    verdict = attestor._prove(asked.gpu_nonce, int(time.time()))
    quote, _ = attestor._quote(report_data(asked.nonce, tee.public_jwk, verdict.additional))
    log = attestor._public.measured.log.cc_eventlog()
    kbs.attest(asked.nonce, tee.public_jwk, CompositeEvidence(quote, log, verdict.additional), None)
    with pytest.raises(AgentError) as caught:
        kbs.release("kbs:///default/model-key/demo")
    assert caught.value.code in ("broker.resource", "broker.denied")


def test_bundle_is_bound_to_the_callers_nonce_and_to_this_boot(here: World) -> None:
    booted = here.boot()
    booted.attestor.reattest()
    text, digest = booted.attestor.bundle(NONCE)
    parsed = bundles.parse_bundle(text)
    assert parsed.nonce == NONCE
    assert parsed.quote_sha256 == digest
    assert booted.attestor.stored(digest) == text
    assert parsed.transcript.tls == booted.keys.tls_event


def test_callers_cannot_push_the_epochs_evidence_out(here: World) -> None:
    booted = here.boot()
    booted.attestor.reattest()
    epoch = str(booted.attestor.verdict()["quote_sha256"])
    for i in range(40):
        booted.attestor.bundle(i.to_bytes(16, "big"))
    assert booted.attestor.stored(epoch) is not None


def test_bundle_is_refused_before_there_is_a_verdict(here: World) -> None:
    with pytest.raises(AgentError) as caught:
        here.boot().attestor.bundle(NONCE)
    assert caught.value.code == "bundle.none"


def test_certificate_request_is_for_the_measured_key_only(here: World) -> None:
    """The broker signs no other key than the one in RTMR3, whoever asks in the session."""

    def swapping(broker: KeyBroker) -> KeyBroker:
        def certify(request: bytes) -> bytes:
            other = ec.generate_private_key(ec.SECP256R1())
            names = (
                x509.load_der_x509_csr(request).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            )
            builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
            forged = builder.add_extension(names, critical=False).sign(other, SHA256())
            from cryptography.hazmat.primitives.serialization import Encoding

            return broker.certify(forged.public_bytes(Encoding.DER))

        return Around(broker, certify=certify)

    assert refused(here, broker=swapping) == "broker.denied"


def test_secrets_never_show_in_a_boots_values(here: World) -> None:
    booted = here.boot()
    shown = repr(booted) + json.dumps(booted.launch.to_json())
    from brokers import KEY

    assert KEY.hex() not in shown
    assert repr(KEY) not in shown
    assert "PRIVATE KEY" not in shown
