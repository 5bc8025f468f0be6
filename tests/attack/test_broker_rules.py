"""Threats against a resource's rule: too late, too often, too many at once. And a broker whose own files are wrong."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from boots import world
from brokers import MODEL_KEY, PREFIX, Guest, Rig, rule, running, serving

from antechamber.broker.kbs import Kbs
from antechamber.broker.messages import ErrorInformation
from antechamber.errors import BrokerDenied, BrokerUnreachable

pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
ANY = "default/any/1"
ONE_LIVE = {"max": 1, "boot_s": 100, "lease_s": 30}


class Clock:
    """It stands where it began, until a test says that time has passed."""

    def __init__(self) -> None:
        self.began, self.passed = int(time.time()), 0

    def __call__(self) -> int:
        return self.began + self.passed


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running(tmp_path / "broker", Clock()) as rig:
        yield rig


def refused(call: Callable[[], object], cause: str) -> None:
    with pytest.raises(BrokerDenied) as error:
        call()
    assert f"{cause}:" in error.value.detail, error.value


def later(rig: Rig, seconds: int) -> None:
    """The broker's clock, from now on: so much after the test began."""
    rig.broker.clock.passed = seconds  # type: ignore[attr-defined]


def attested(rig: Rig, *, cap: bool = False, guest: Guest | None = None) -> tuple[Guest, Kbs]:
    guest, kbs = guest or rig.guest(), rig.kbs()
    if cap:
        guest.cap()
    guest.attest(kbs)
    return guest, kbs


def test_key_is_refused_after_its_last_day(rig: Rig) -> None:
    rig.rewrite(resources={MODEL_KEY: rule("boot", until="2026-01-01T00:00:00Z")})
    _, kbs = attested(rig)
    refused(lambda: kbs.release(MODEL_KEY), "rules.until")
    assert rig.decisions()[-1] == ("refused", "rules.until")


def test_key_is_refused_when_it_was_released_too_often(rig: Rig) -> None:
    rig.rewrite(resources={MODEL_KEY: rule("boot", releases={"max": 2, "per_s": 60})})
    for _ in range(2):
        attested(rig)[1].release(MODEL_KEY)
    _, kbs = attested(rig)
    refused(lambda: kbs.release(MODEL_KEY), "rules.releases")
    later(rig, -3600)
    refused(lambda: attested(rig)[1].release(MODEL_KEY), "rules.releases")
    later(rig, 61)
    attested(rig)[1].release(MODEL_KEY)


def test_refusal_by_a_limit_spends_no_session(rig: Rig) -> None:
    rig.rewrite(resources={MODEL_KEY: rule("boot", until="2026-01-01T00:00:00Z"), ANY: rule("any")})
    _, kbs = attested(rig)
    refused(lambda: kbs.release(MODEL_KEY), "rules.until")
    kbs.release(ANY)


def test_key_is_refused_while_enough_guests_have_it(rig: Rig) -> None:
    rig.rewrite(resources={MODEL_KEY: rule("boot", at_once=ONE_LIVE)}, lease={"policy": "demo"})
    first, kbs = attested(rig)
    kbs.release(MODEL_KEY)
    refused(lambda: attested(rig)[1].release(MODEL_KEY), "rules.at-once")
    attested(rig, cap=True, guest=first)[1].lease()
    later(rig, 29)
    refused(lambda: attested(rig)[1].release(MODEL_KEY), "rules.at-once")
    later(rig, 31)  # the first one is silent for longer than its lease
    attested(rig)[1].release(MODEL_KEY)
    _, kbs = attested(rig, guest=first)
    refused(kbs.lease, "rules.at-once")


def test_release_after_a_lease_frees_no_place(rig: Rig) -> None:
    """A guest that is broken into asks again for what serving guests get, with a short `boot_s`."""
    rig.rewrite(
        resources={ANY: rule("any", at_once={"max": 1, "boot_s": 30, "lease_s": 100})}, lease={"policy": "demo"}
    )
    first, kbs = attested(rig)
    kbs.release(ANY)
    _, kbs = attested(rig, cap=True, guest=first)
    kbs.lease()
    later(rig, 10)
    kbs.release(ANY)
    later(rig, 60)
    refused(lambda: attested(rig)[1].release(ANY), "rules.at-once")
    later(rig, 101)
    attested(rig)[1].release(ANY)


def test_limits_outlast_a_restart_of_the_broker(rig: Rig) -> None:
    limits = {"releases": {"max": 1, "per_s": 3600}}
    rig.rewrite(resources={MODEL_KEY: rule("boot", **limits), ANY: rule("any", at_once=ONE_LIVE)})
    guest, kbs = attested(rig)
    kbs.release(ANY)
    kbs.release(MODEL_KEY)
    with serving(rig.directory, rig.intel, rig.nvidia) as again:
        refused(lambda: guest.attest(again.kbs()), "session.spent")  # this boot has had its key
        _, kbs = attested(again)
        refused(lambda: kbs.release(MODEL_KEY), "rules.releases")
        refused(lambda: kbs.release(ANY), "rules.at-once")


@pytest.mark.parametrize(
    ("limits", "cause"),
    [
        ({"releases": {"max": 2, "per_s": 3600}}, "rules.releases"),
        ({"at_once": {"max": 2, "boot_s": 3600, "lease_s": 60}}, "rules.at-once"),
    ],
)
def test_guests_that_ask_at_once_exceed_no_limit(rig: Rig, limits: dict[str, object], cause: str) -> None:
    rig.rewrite(resources={MODEL_KEY: rule("boot", **limits)})
    tokens = [rig.guest().attest(rig.kbs()) for _ in range(6)]
    answers: list[str] = []
    start = threading.Barrier(len(tokens))

    def ask(token: str) -> None:
        start.wait()
        status, _, body = rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Authorization=f"Bearer {token}")
        answers.append("released" if status == 200 else ErrorInformation.parse(body).detail)

    threads = [threading.Thread(target=ask, args=(token,)) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count("released") == 2
    assert sum(f"{cause}:" in answer for answer in answers) == 4
    assert rig.decisions().count(("released", "")) == 2


def test_resource_for_serving_guests_is_refused_at_boot(rig: Rig) -> None:
    rig.rewrite(resources={ANY: rule("released")})
    guest, kbs = attested(rig)
    refused(lambda: kbs.release(ANY), "rules.phase")
    attested(rig, cap=True, guest=guest)[1].release(ANY)


def test_policy_that_asks_the_broker_for_its_own_result_refuses_everything(rig: Rig) -> None:
    """The broker appraises no Attestation Result: a policy that demands one would be met unread."""
    rules = yaml.safe_load((rig.directory / "policy.yaml").read_text())
    rules["policies"]["demo"]["attestation_result"] = {"ca": rig.broker.token_ca}
    rig.rewrite(policies=rules["policies"])
    with pytest.raises(BrokerUnreachable, match=r"rules\.value"):
        attested(rig)


# -- the broker's own files say nothing of a guest


def broken(rig: Rig, **changes: str) -> dict[str, str]:
    return rig.intel.collateral() | changes


OWN_FAULTS: dict[str, tuple[str, Callable[[Rig], dict[str, str]]]] = {
    "expired": ("collateral.expired", lambda rig: rig.intel.collateral(days=-1)),
    "another platform's": ("collateral.fmspc", lambda rig: rig.intel.collateral(fmspc="90C06F000000")),
    "another PCE's": ("collateral.pce-id", lambda rig: rig.intel.collateral(pce_id="0001")),
    "signed by a PCK": ("collateral.role", lambda rig: rig.intel.collateral(tcb_signer="pck")),
    "signature": ("collateral.signature", lambda rig: broken(rig, tcb_info_signature="00" * 64)),
    "CRL of another CA": (
        "collateral.revocation",
        lambda rig: broken(rig, pck_crl=rig.intel.collateral()["root_ca_crl"]),
    ),
}


@pytest.mark.parametrize("case", OWN_FAULTS)
def test_wrong_collateral_of_the_brokers_own_is_no_verdict(rig: Rig, case: str) -> None:
    """A serving guest that took it for one would power off; whoever damages one file would end them all."""
    code, collateral = OWN_FAULTS[case]
    path = rig.directory / "collateral" / "simulated.json"
    path.unlink()
    path.write_text(json.dumps(collateral(rig)))
    rig.broker.collateral._good.clear()  # as a broker that never had a good set
    with pytest.raises(BrokerUnreachable, match=code):
        attested(rig)
    assert rig.decisions()[-1] == ("refused", code)


# -- whole boots


def test_second_boot_ends_without_a_key_while_the_first_one_lives() -> None:
    with world() as booting:
        rules = yaml.safe_load((booting.rig.directory / "policy.yaml").read_text())
        limit = {"at_once": {"max": 1, "boot_s": 3600, "lease_s": 600}}
        booting.rig.rewrite(resources=rules["resources"] | {MODEL_KEY: rule("boot", **limit)})
        booting.boot()
        with pytest.raises(BrokerDenied, match=r"rules\.at-once") as error:
            booting.boot()
        assert error.value.exit_status == 77
        assert not booting.plaintext
        assert booting.rig.decisions()[-1] == ("refused", "rules.at-once")
