"""Genuine parts put together by a host: each part verifies by itself, and the broker still refuses the whole."""

import hashlib
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from brokers import MODEL_KEY, PREFIX, Guest, Rig, rule, running

from antechamber.broker.kbs import Kbs
from antechamber.broker.messages import ErrorInformation
from antechamber.errors import BrokerDenied
from antechamber.evidence.composite import CompositeEvidence, additional_evidence, report_data


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running(tmp_path / "broker") as rig:
        yield rig


def refused(call: Callable[[], object], cause: str) -> None:
    with pytest.raises(BrokerDenied) as error:
        call()
    assert f"{cause}:" in error.value.detail, error.value


def key_refused(rig: Rig, guest: Guest, cause: str) -> None:
    """Its Evidence verifies; what it says earns nothing."""
    kbs = rig.kbs()
    guest.attest(kbs)
    refused(lambda: kbs.release(MODEL_KEY), cause)
    assert ("released", "") not in rig.decisions()


def send(kbs: Kbs, guest: Guest, nonce: str, quote: bytes, log: bytes | None, additional: str) -> str:
    return kbs.attest(nonce, guest.tee.public_jwk, CompositeEvidence(quote, log, additional), None)


# -- quote and GPU Evidence of different places


def test_stale_quote_beside_fresh_gpu_evidence_is_refused(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    old = guest.evidence(kbs.challenge())
    nonce = kbs.challenge()
    fresh = guest.evidence(nonce)
    refused(lambda: send(kbs, guest, nonce, old.quote, fresh.event_log, fresh.additional), "quote.report-data")


def test_foreign_quote_over_our_reportdata_is_refused(rig: Rig) -> None:
    """Another TD quotes what it is told; its registers are not those of our log."""
    guest, other, kbs = rig.guest(), rig.guest(), rig.kbs()
    nonce = kbs.challenge()
    ours = guest.evidence(nonce)
    quote = other.machine.quote(report_data(nonce, guest.tee.public_jwk, ours.additional))
    refused(lambda: send(kbs, guest, nonce, quote, ours.event_log, ours.additional), "eventlog.replay")


def test_quote_of_another_guest_with_our_gpu_evidence_is_refused(rig: Rig) -> None:
    """A measured guest without GPUs of its own, and a host that lends it ours."""
    guest, other, kbs = rig.guest(), rig.guest(), rig.kbs()
    nonce = kbs.challenge()
    other.tee = guest.tee
    theirs = other.evidence(nonce)
    quote = other.machine.quote(report_data(nonce, guest.tee.public_jwk, ""))
    mixed = additional_evidence(guest.devices(nonce))
    refused(lambda: send(kbs, guest, nonce, quote, theirs.event_log, mixed), "quote.report-data")


def test_our_quote_with_gpu_evidence_of_another_guest_is_refused(rig: Rig) -> None:
    guest, other, kbs = rig.guest(), rig.guest(gpus=2), rig.kbs()
    nonce = kbs.challenge()
    other.tee = guest.tee
    ours, theirs = guest.evidence(nonce), additional_evidence(other.devices(nonce)[1:])
    refused(lambda: send(kbs, guest, nonce, ours.quote, ours.event_log, theirs), "quote.report-data")


def test_gpu_that_was_not_measured_earns_no_key_though_the_quote_binds_it(rig: Rig) -> None:
    """A guest that is told to quote over another GPU's Evidence: its RTMR3 names the one that it measured."""
    guest = rig.guest()
    guest.machine.gpus = (guest.machine.nvidia.device(7),)
    key_refused(rig, guest, "appraisal.gpu-identity")


# -- what the quote says of the TD


def test_wrong_mr_td_earns_no_key(rig: Rig) -> None:
    key_refused(rig, rig.guest(mr_td="ab" * 48), "appraisal.mr-td")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_wrong_rtmr_earns_no_key_though_the_log_replays(rig: Rig, number: int) -> None:
    """Another bootloader, kernel or command line, honestly logged."""
    guest = rig.guest()
    digest = hashlib.sha384(b"another kernel").digest()
    guest.machine.extend(number, digest)
    guest.log += struct.pack("<III", number + 1, 13, 1) + struct.pack("<H", 12) + digest + struct.pack("<I", 0)
    key_refused(rig, guest, f"appraisal.rtmr{number}")


def test_wrong_mrconfigid_earns_no_key(rig: Rig) -> None:
    key_refused(rig, rig.guest(mr_config_id="ab" * 48), "appraisal.mr-config-id")


def test_guest_that_measured_one_event_more_earns_no_key(rig: Rig) -> None:
    guest = rig.guest()
    guest.extend("debug", "shell")
    key_refused(rig, guest, "appraisal.events")


def test_guest_that_measured_in_another_order_earns_no_key(rig: Rig) -> None:
    guest = rig.guest()
    guest.machine.reset()
    guest.log = b""
    any_ = "sha384:" + "22" * 48
    contents = {"model": "sha256:" + "11" * 32, "config": any_, "init-data": any_, "engine": any_}
    contents |= {"gpu": guest.gpu_event, "tls": guest.tls_event, "receipt": any_}
    for operation, content in contents.items():
        guest.extend(operation, content)
    key_refused(rig, guest, "appraisal.events")


def test_platform_that_is_out_of_date_earns_no_key(rig: Rig) -> None:
    path = rig.directory / "collateral" / "simulated.json"
    path.write_text(json.dumps(rig.intel.collateral(tcb_status="OutOfDate")))
    key_refused(rig, rig.guest(), "appraisal.tcb-status")


def test_collateral_rolled_back_to_an_older_evaluation_earns_no_key(rig: Rig) -> None:
    """Well signed and not over, but of before the last TCB recovery."""
    import yaml

    rules = yaml.safe_load((rig.directory / "policy.yaml").read_text())
    rules["policies"]["demo"]["collateral"]["min_tcb_eval"] = 17
    rig.rewrite(policies=rules["policies"])
    (rig.directory / "collateral" / "simulated.json").write_text(json.dumps(rig.intel.collateral(eval_number=16)))
    key_refused(rig, rig.guest(), "appraisal.tcb-eval")


# -- who asks, and when


def later(rig: Rig, seconds: int) -> None:
    object.__setattr__(rig.broker, "clock", lambda: int(time.time()) + seconds)


def test_expired_session_releases_nothing(rig: Rig) -> None:
    _, headers, _ = rig.raw("POST", PREFIX + "/auth", b'{"version":"0.4.0","tee":"tdx","extra-params":{}}')
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    later(rig, 301)
    assert kbs._cookie is not None
    for cookie in (headers["set-cookie"].partition(";")[0], kbs._cookie.build()):
        status, _, body = rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Cookie=cookie)
        assert status == 401
        assert "session.unknown" in ErrorInformation.parse(body).detail


def test_session_of_our_own_making_is_refused(rig: Rig) -> None:
    """An id says itself when it ends, and all but its MAC can be made up."""
    forged = (os.urandom(16) + (int(time.time()) + 300).to_bytes(8, "big") + bytes(32)).hex()
    status, _, body = rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Cookie=f"kbs-session-id={forged}")
    assert status == 401
    assert "session.unknown" in ErrorInformation.parse(body).detail


def test_expired_token_releases_nothing(rig: Rig) -> None:
    token = rig.guest().attest(rig.kbs())
    later(rig, 301)
    status, _, body = rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Authorization=f"Bearer {token}")
    assert status == 401
    assert "ear.expired" in ErrorInformation.parse(body).detail


def test_resource_that_no_rule_names_is_released_to_nobody(rig: Rig) -> None:
    guest, kbs = rig.guest(), rig.kbs()
    guest.attest(kbs)
    refused(lambda: kbs.release("default/unruled/1"), "rules.none")


def test_resource_of_another_policy_is_refused_to_a_guest_that_meets_only_one(rig: Rig) -> None:
    """Being vouched for by some policy is not being vouched for by the resource's."""
    import yaml

    rules = yaml.safe_load((rig.directory / "policy.yaml").read_text())
    policies = rules["policies"]
    strict = json.loads(json.dumps(policies["demo"]))
    strict["tdx"]["mr_td"] = ["cd" * 48]
    rig.rewrite(policies=policies | {"strict": strict}, resources={MODEL_KEY: rule("boot") | {"policy": "strict"}})
    key_refused(rig, rig.guest(), "appraisal.mr-td")
