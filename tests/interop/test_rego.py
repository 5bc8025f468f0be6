"""The Rego of docs/trustee, run: over the claims of our own token (Trustee's names), one negative for each rule."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import running
from interop.kit.server_release import claims_of
from interop.regos import ENGINES, REFERENCES, Engine, regopy
from vectors import VECTORS, needs_vectors

DOCS = Path(__file__).resolve().parents[2] / "docs" / "trustee"
POLICY = (DOCS / "resource-policy.rego").read_text()
CPU, GPU = ((DOCS / f"attestation-policy-{name}.rego").read_text() + REFERENCES for name in ("cpu", "gpu"))
EVIDENCE = "ear.veraison.annotated-evidence"
KEY = {"plugin": "resource", "resource-path": ["default", "model-key", "llama-3.1-8b"], "query": {}}
CERTIFICATE = {"plugin": "external", "resource-path": ["antechamber", "certificate"], "query": {}}
LEASE = {"plugin": "external", "resource-path": ["antechamber", "lease"], "query": {}}
Claims = dict[str, Any]
engines = pytest.mark.parametrize(
    "engine", [pytest.param(e, marks=pytest.mark.rego) if e is regopy else e for e in ENGINES], ids=lambda e: e.__name__
)


def trustees(claims: Claims) -> Claims:
    """With the log of the firmware too, as Trustee has it; one entry pretends to be ours, in another register."""
    events = tdx(claims)["uefi_event_logs"]
    separator = {"index": 1, "type_name": "EV_SEPARATOR", "digest_matches_event": True, "details": {}, "digests": []}
    pretender = copy.deepcopy(events[3]) | {"index": 3}
    pretender["details"]["data"]["content"] = "sha256:" + "ff" * 32
    tdx(claims)["uefi_event_logs"] = [separator, separator | {"index": 2}, pretender, *events]
    return claims


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Claims, Claims]]:
    """The claims of a booting guest, and of the same guest once it serves."""
    with running(tmp_path_factory.mktemp("broker") / "broker") as rig:
        guest = rig.guest()
        booting = claims_of(guest.attest(rig.kbs()))
        guest.cap()
        yield trustees(booting), trustees(claims_of(guest.attest(rig.kbs())))


def cpu(claims: Claims) -> Any:
    return claims["submods"]["cpu0"]


def tdx(claims: Claims) -> Any:
    return cpu(claims)[EVIDENCE]["tdx"]


def body(claims: Claims) -> Any:
    return tdx(claims)["quote"]["body"]


def log(claims: Claims) -> list[Any]:
    events: list[Any] = tdx(claims)["uefi_event_logs"]
    return events


def data(event: Any) -> Any:
    return event["details"]["data"]


def filled(source: str, claims: Claims) -> str:
    """The policy with this guest's values in the place of the example's."""
    contents = {data(e)["operation"]: data(e)["content"] for e in log(claims) if e["index"] == 4}
    values = [body(claims)[n] for n in ("mr_td", "rtmr_1", "rtmr_2")]
    for number, value in enumerate(values, 1):
        source = source.replace(f"{number:096d}", value)
    for number, name in ((4, "config"), (5, "engine")):
        source = source.replace(f"sha384:{number:096d}", contents[name])
    return source.replace("sha256:" + "0" * 64, contents["model"])


def allows(engine: Engine, claims: Claims, what: Any = KEY, **edits: str) -> bool:
    found = engine(filled(POLICY, claims), what, claims, "allow")
    assert isinstance(found, bool)
    return found


@engines
def test_booting_guest_gets_its_key_and_its_certificate_and_no_lease(
    engine: Engine, seen: tuple[Claims, Claims]
) -> None:
    assert [allows(engine, seen[0], what) for what in (KEY, CERTIFICATE, LEASE)] == [True, True, False]


@engines
def test_serving_guest_gets_a_certificate_and_a_lease_and_no_key(engine: Engine, seen: tuple[Claims, Claims]) -> None:
    assert [allows(engine, seen[1], what) for what in (KEY, CERTIFICATE, LEASE)] == [False, True, True]


def put(where: Callable[[Claims], Any], **values: Any) -> Callable[[Claims], None]:
    return lambda claims: where(claims).update(values)


def append(domain: str, operation: str, content: str) -> Callable[[Claims], None]:
    def change(claims: Claims) -> None:
        event = copy.deepcopy(log(claims)[-1])
        data(event).update(domain=domain, operation=operation, content=content)
        log(claims).append(event)

    return change


def drop(index: int) -> Callable[[Claims], None]:
    return lambda claims: log(claims).pop(index)


def swap(claims: Claims) -> None:
    log(claims)[-1], log(claims)[-2] = log(claims)[-2], log(claims)[-1]


def without_evidence(claims: Claims) -> None:
    del cpu(claims)[EVIDENCE]


def no_log(claims: Claims) -> None:
    tdx(claims)["uefi_event_logs"] = []


OTHER = "ab" * 48
MODEL = -4  # of the log: model, gpu, tls, receipt are last
ATTACKS: dict[str, Callable[[Claims], Any]] = {
    "the verifier's status": put(cpu, **{"ear.status": "contraindicated"}),
    "a warning": put(cpu, **{"ear.status": "warning"}),
    "an SGX quote": put(lambda c: tdx(c)["quote"]["header"], tee_type="00000000"),
    "another quoting enclave": put(lambda c: tdx(c)["quote"]["header"], vendor_id="00" * 16),
    "debug": put(lambda c: tdx(c)["td_attributes"], debug=True),
    "firmware": put(body, mr_td=OTHER),
    "kernel": put(body, rtmr_1=OTHER),
    "command line": put(body, rtmr_2=OTHER),
    "init-data": put(body, mr_config_id=OTHER),
    "owner": put(body, mr_owner=OTHER),
    "owner's configuration": put(body, mr_owner_config=OTHER),
    "attributes": put(body, td_attributes="0000003000000000"),
    "xfam": put(body, xfam="ff" * 8),
    "tcb": put(tdx, tcb_status="OutOfDate"),
    "advisory": put(tdx, advisory_ids=["INTEL-SA-00837"]),
    "expired collateral": put(tdx, collateral_expiration_status="1"),
    "another model": lambda c: data(log(c)[MODEL]).update(content="sha256:" + "ab" * 32),
    "another configuration": lambda c: data(log(c)[MODEL - 3]).update(content="sha384:" + OTHER),
    "another engine": lambda c: data(log(c)[MODEL - 1]).update(content="sha384:" + OTHER),
    "an entry that is not its digest": lambda c: log(c)[MODEL].update(digest_matches_event=False),
    "an entry of another domain": lambda c: data(log(c)[MODEL]).update(domain="other"),
    "an entry of another kind": lambda c: log(c)[MODEL].update(type_name="EV_IPL"),
    "an entry without details": lambda c: log(c)[MODEL].update(details={"string": ""}),
    "an entry that is missing": drop(-1),
    "an entry of another register": lambda c: log(c)[-1].update(index=3),
    "another order": swap,
    "no log": no_log,
    "an entry twice": append("antechamber", "model", "sha256:" + "11" * 32),
    "a foreign entry after ours": append("github.com/confidential-containers", "PullImage", "{}"),
    "released": append("antechamber", "released", "sha384:" + OTHER),
    "released under another domain": append("other", "released", "sha384:" + OTHER),
    "no GPU": lambda c: c["submods"].pop("gpu0"),
    "a GPU that is not vouched for": lambda c: c["submods"]["gpu0"].update({"ear.status": "contraindicated"}),
    "a second GPU": lambda c: c["submods"].update(gpu1=c["submods"]["gpu0"]),
    "a switch": lambda c: c["submods"].update(switch0=c["submods"]["gpu0"]),
    "a GPU by another name": lambda c: c["submods"].update(gpux=c["submods"].pop("gpu0")),
    "no evidence": without_evidence,
    "no CPU": lambda c: c["submods"].pop("cpu0"),
    "nothing": lambda c: c.clear(),
    "a sample": put(lambda c: cpu(c), **{EVIDENCE: {"sample": {"svn": "1"}}}),
}


@engines
@pytest.mark.parametrize("attack", ATTACKS)
def test_key_and_certificate_are_denied(engine: Engine, seen: tuple[Claims, Claims], attack: str) -> None:
    source, claims = filled(POLICY, seen[0]), copy.deepcopy(seen[0])
    ATTACKS[attack](claims)
    assert [engine(source, what, claims, "allow") for what in (KEY, CERTIFICATE, LEASE)] == [False] * 3


@engines
def test_rtmr0_is_not_compared_where_the_policy_says_any(engine: Engine, seen: tuple[Claims, Claims]) -> None:
    claims = copy.deepcopy(seen[0])
    body(claims)["rtmr_0"] = OTHER
    assert allows(engine, claims)
    pinned = filled(POLICY, claims).replace('"rtmr_0": "any"', f'"rtmr_0": ["{"00" * 48}"]')
    assert engine(pinned, KEY, claims, "allow") is False


SERVING: dict[str, Callable[[Claims], Any]] = {
    "another key than the one in use": lambda c: data(log(c)[-1]).update(content="sha384:" + OTHER),
    "an entry after released": append("antechamber", "model", "sha256:" + "11" * 32),
    "a foreign entry after released": append("other", "PullImage", "{}"),
    "released twice": append("antechamber", "released", "sha384:" + OTHER),
}


@engines
@pytest.mark.parametrize("attack", SERVING)
def test_serving_guest_is_denied(engine: Engine, seen: tuple[Claims, Claims], attack: str) -> None:
    claims = copy.deepcopy(seen[1])
    SERVING[attack](claims)
    source = filled(POLICY, seen[1])
    assert [engine(source, what, claims, "allow") for what in (KEY, CERTIFICATE, LEASE)] == [False] * 3


@engines
@pytest.mark.parametrize(
    "what",
    [
        {"plugin": "resource", "resource-path": ["default", "model-key", "other"]},
        {"plugin": "resource", "resource-path": ["default", "model-key"]},
        {"plugin": "resource", "resource-path": ["default", "model-key", "llama-3.1-8b", ""]},
        {"plugin": "pkcs11", "resource-path": ["default", "model-key", "llama-3.1-8b"]},
        {"plugin": "resource", "resource-path": []},
        {"plugin": "resource"},
    ],
    ids=str,
)
def test_what_no_rule_names_is_denied(engine: Engine, seen: tuple[Claims, Claims], what: Any) -> None:
    assert allows(engine, seen[0], what) is False


@engines
@pytest.mark.parametrize(
    ("until", "held"), [("4102444800", True), ("1577836800", False), ('"soon"', False), ("null", False)]
)
def test_rule_ends_when_it_says(engine: Engine, seen: tuple[Claims, Claims], until: str, held: bool) -> None:
    source = filled(POLICY, seen[0]).replace(
        '"phase": "boot", "until": "unlimited"', f'"phase": "boot", "until": {until}'
    )
    assert engine(source, KEY, seen[0], "allow") is held


# -- the EAR policies of Trustee's attestation service


def references(claims: Claims) -> Any:
    contents = {data(e)["operation"]: data(e)["content"] for e in log(claims) if e["index"] == 4}
    values = {
        name: [body(claims)[name]] for name in ("mr_td", "rtmr_1", "rtmr_2", "td_attributes", "xfam", "mr_config_id")
    }
    values |= {f"antechamber_{name}": [contents[name]] for name in ("config", "engine")}
    return {"reference": values | {"tcb_status": ["UpToDate"]}}


def worst(engine: Engine, claims: Claims, reference: Any) -> int:
    found = engine(CPU, reference, cpu(claims).get(EVIDENCE, {}), "trust_claims")
    return max(found.values())


@engines
def test_guest_is_affirming_where_everything_is_a_reference_value(engine: Engine, seen: tuple[Claims, Claims]) -> None:
    for claims in seen:
        found = engine(CPU, references(claims), cpu(claims)[EVIDENCE], "trust_claims")
        assert (found["hardware"], found["configuration"], found["executables"]) == (2, 2, 3)
        assert len(found) == 8


PER_RESOURCE = {"the verifier's status", "a warning", "owner", "owner's configuration", "advisory", "another model",
                "released", "no GPU", "a GPU that is not vouched for", "a second GPU", "a switch",
                "a GPU by another name", "no CPU", "nothing"}  # fmt: skip


@engines
@pytest.mark.parametrize("attack", sorted(set(ATTACKS) - PER_RESOURCE))
def test_guest_is_contraindicated(engine: Engine, seen: tuple[Claims, Claims], attack: str) -> None:
    claims = copy.deepcopy(seen[0])
    ATTACKS[attack](claims)
    assert worst(engine, claims, references(seen[0])) >= 96


@engines
def test_guest_is_contraindicated_while_a_reference_value_is_missing(
    engine: Engine, seen: tuple[Claims, Claims]
) -> None:
    whole = references(seen[0])["reference"]
    assert worst(engine, seen[0], {"reference": {}}) >= 96
    for name in whole:
        assert worst(engine, seen[0], {"reference": {k: v for k, v in whole.items() if k != name}}) >= 96, name


LOCAL = {
    "arch": "Hopper",
    "uuid": "GPU-1",
    "config": {"OPAQUE_FIELD_ID_DRIVER_VERSION": "570.124.06\0", "OPAQUE_FIELD_ID_VBIOS_VERSION": "00009f9600000001"},
}
ALLOWED = {"allowed_driver_versions": ["570.124.06"], "allowed_vbios_versions": ["00009f9600000001"]}


def gpu(engine: Engine, claims: Any, allowed: Any = ALLOWED) -> tuple[int, int, int]:
    found = engine(GPU, {"reference": allowed}, {"nvidia": claims}, "trust_claims")
    return found["hardware"], found["configuration"], found["executables"]


@engines
def test_gpu_of_the_local_verifier(engine: Engine) -> None:
    assert gpu(engine, LOCAL) == (2, 2, 4)
    assert gpu(engine, LOCAL, {}) == (2, 97, 97)
    assert gpu(engine, LOCAL | {"arch": "Ampere"}) == (97, 2, 97)
    older = LOCAL["config"] | {"OPAQUE_FIELD_ID_DRIVER_VERSION": "535.1.1\0"}  # type: ignore[operator]
    assert gpu(engine, LOCAL | {"config": older}) == (2, 97, 97)
    assert gpu(engine, {}) == (97, 97, 97)


@needs_vectors
@engines
def test_gpu_of_nras(engine: Engine) -> None:
    """Origin of the claims: NVIDIA's own service."""
    claims = nras()
    allowed = {
        "allowed_driver_versions": [claims["x-nvidia-gpu-driver-version"]],
        "allowed_vbios_versions": [claims["x-nvidia-gpu-vbios-version"]],
    }
    assert gpu(engine, claims, allowed) == (2, 2, 3)
    for name, value, at in [
        ("measres", "fail", 2),
        ("secboot", False, 1),
        ("dbgstat", "enabled", 1),
        ("x-nvidia-gpu-driver-version", "1", 1),
        ("x-nvidia-gpu-vbios-version", "1", 1),
        ("x-nvidia-gpu-attestation-report-signature-verified", False, 0),
        ("x-nvidia-gpu-attestation-report-cert-chain-fwid-match", False, 0),
        ("x-nvidia-gpu-arch-check", False, 0),
    ]:
        assert name in claims, name
        assert gpu(engine, claims | {name: value}, allowed)[at] == 97, name


def nras() -> Claims:
    found: Claims = json.loads((VECTORS / "nvidia" / "nras" / "hopperClaimsv3_decoded.json").read_text())["GPU-0"]
    return found
