"""`antechamber policy`: all that is wrong, what would be decided, and an exit status that says whether any would."""

import copy
import io
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from brokers import MODEL_KEY, PREFIX, Guest, Rig, auth_body, cookie_of, rule, running, serving
from unit.client.guest import Guest as Server

from antechamber import cli
from antechamber.broker.messages import Attestation
from antechamber.broker.refused import MAX_BYTES, RefusedBodies
from antechamber.broker.rules import ResourceRule
from antechamber.errors import BrokerDenied
from antechamber.evidence.initdata import mr_config_id
from antechamber.strict import parse_utc

ANY = "default/any/1"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running(tmp_path / "broker") as rig:
        yield rig


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Exit status, stdout, and the code of the one ERROR record."""
    capsys.readouterr()
    status = cli.main(["--log", "json", "policy", *map(str, argv)])
    out, err = capsys.readouterr()
    refusals = [json.loads(line) for line in err.splitlines() if '"refused"' in line]
    return status, out, refusals[-1]["code"] if refusals else ""


def decided(out: str) -> dict[str, str]:
    return {d["what"]: d["code"] or d["outcome"] for d in json.loads(out)["decisions"]}


def body(tmp_path: Path, guest: Guest, change: Callable[[Attestation], Attestation] = lambda sent: sent) -> Path:
    """What the guest would send; the nonce is nobody's."""
    nonce = "A" * 43 + "="
    sent = Attestation.of(nonce, guest.tee.public_jwk, guest.evidence(nonce), None)
    path = tmp_path / "body.json"
    path.write_bytes(change(sent).build())
    return path


# -- by a broker's rules


def test_explain_says_what_a_healthy_guest_would_get(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = body(tmp_path, rig.guest())
    status, out, _ = run(capsys, "explain", given, "--broker", rig.directory, "--json")
    assert status == 0
    assert decided(out) == {
        MODEL_KEY: "allowed", ANY: "allowed", "default/missing/1": "resource.missing", "certificates": "allowed",
        "lease": "rules.phase",
    }  # fmt: skip
    said = json.loads(out)
    assert (said["evidence"], said["phase"]) == ("attestation", "boot")
    assert said["policies"]["demo"]["ok"]
    assert said["policies"]["demo"]["simulated"]
    nonce = said["verification"]["claims"][0]
    assert (nonce["outcome"], nonce["wanted"]) == ("not-appraised", "a saved body has no freshness")
    status, text, _ = run(capsys, "explain", given, "--broker", rig.directory)
    assert status == 0
    assert "SIMULATED HARDWARE" in text
    assert f"{MODEL_KEY:<40} ALLOWED" in text


def test_explain_says_the_limits_without_using_them_up(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = {"max": 1, "boot_s": 3600, "lease_s": 60}
    rig.rewrite(
        resources={
            MODEL_KEY: rule("boot", releases={"max": 1, "per_s": 3600}),
            ANY: rule("any", at_once=live),
            "default/unruled/1": rule("boot", until="2026-01-01T00:00:00Z"),
        }
    )
    given = body(tmp_path, rig.guest())
    for _ in range(3):
        _, out, _ = run(capsys, "explain", given, "--broker", rig.directory, "--json")
        assert decided(out)[MODEL_KEY] == decided(out)[ANY] == "allowed"
        assert decided(out)["default/unruled/1"] == "rules.until"
    first = rig.guest()
    kbs = rig.kbs()
    first.attest(kbs)
    kbs.release(ANY)
    kbs.release(MODEL_KEY)
    _, out, _ = run(capsys, "explain", given, "--broker", rig.directory, "--json")
    assert (decided(out)[MODEL_KEY], decided(out)[ANY]) == ("rules.releases", "rules.at-once")
    status, out, code = run(capsys, "explain", body(tmp_path, first), "--broker", rig.directory, "--json")
    assert (status, code) == (77, "session.spent")
    assert set(decided(out).values()) == {"session.spent"}


def test_explain_agrees_with_the_broker(rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it says of a guest, the guest then gets."""
    for guest in (rig.guest(), rig.guest(mr_td="ab" * 48), rig.guest(debug=True), rig.guest(gpus=2)):
        said = decided(run(capsys, "explain", body(tmp_path, guest), "--broker", rig.directory, "--json")[1])
        _, headers, answer = rig.raw("POST", PREFIX + "/auth", auth_body())
        nonce, cookie = json.loads(answer)["nonce"], cookie_of(headers)
        sent = Attestation.of(nonce, guest.tee.public_jwk, guest.evidence(nonce), None).build()
        status, _, answer = rig.raw("POST", PREFIX + "/attest", sent, Cookie=cookie)
        if status == 200:
            status, _, answer = rig.raw("GET", f"{PREFIX}/resource/{MODEL_KEY}", Cookie=cookie)
        assert (said[MODEL_KEY] == "allowed") == (status == 200)
        assert status == 200 or f"{said[MODEL_KEY]}:".encode() in answer


def test_explain_writes_nothing(rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> list[Any]:
        with sqlite3.connect(rig.directory / "broker.sqlite") as db:
            return [db.execute(f"SELECT count(*) FROM {t}").fetchone() for t in
                    ("moment", "release", "holder", "audit", "stranger")]  # fmt: skip

    before = rows()
    run(capsys, "explain", body(tmp_path, rig.guest()), "--broker", rig.directory)
    assert rows() == before


def test_explain_needs_no_database_and_no_key(rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("broker.sqlite", "master.key", "collateral-signer.key", "token.key", "guest-ca.key", "server.key"):
        (rig.directory / name).unlink()
    given = body(tmp_path, rig.guest())
    _, out, _ = run(capsys, "explain", given, "--broker", rig.directory, "--json")
    assert decided(out)[MODEL_KEY] == "resource.missing"
    assert not (rig.directory / "broker.sqlite").exists()


def test_explain_refuses_a_database_of_another_kind(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = body(tmp_path, rig.guest())
    (rig.directory / "broker.yaml").write_text(
        (rig.directory / "broker.yaml").read_text().replace("broker.sqlite", "other.sqlite")
    )
    sqlite3.connect(rig.directory / "other.sqlite").close()
    (rig.directory / "other.sqlite").write_bytes(b"no database at all, and longer than a header" * 4)
    assert run(capsys, "explain", given, "--broker", rig.directory)[::2] == (78, "broker.database")


def test_explain_refuses_while_the_rules_do_not_parse(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = body(tmp_path, rig.guest())
    (rig.directory / "policy.yaml").write_text("")
    assert run(capsys, "explain", given, "--broker", rig.directory)[::2] == (78, "rules.type")


def test_explain_refuses_when_no_rule_names_anything(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = body(tmp_path, rig.guest())
    rig.rewrite(resources={}, certificates=None, lease=None)
    status, out, code = run(capsys, "explain", given, "--broker", rig.directory, "--json")
    assert (status, code) == (77, "rules.none")
    assert decided(out) == {"certificates": "rules.none", "lease": "rules.none"}


def test_explain_gives_the_reason_that_the_session_would_keep(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two policies that both fail, the first says why; and a guest that any of them accepts meets its own rule's."""
    rules = yaml.safe_load((rig.directory / "policy.yaml").read_text())["policies"]
    other = copy.deepcopy(rules["demo"])
    other["gpu"]["count"] = 2
    rig.rewrite(policies={"all": other, "demo": rules["demo"]}, lease={"policy": "all"}, resources={ANY: rule("any")})
    for knobs, wanted in (
        ({"mr_td": "ab" * 48}, {ANY: "appraisal.mr-td", "lease": "appraisal.mr-td"}),
        ({"arch": "BLACKWELL"}, {ANY: "appraisal.gpu-count", "lease": "appraisal.gpu-count"}),
        ({}, {ANY: "allowed", "lease": "appraisal.gpu-count"}),
    ):
        guest = rig.guest(**knobs)
        guest.cap()
        given = body(tmp_path, guest)
        found = decided(run(capsys, "explain", given, "--broker", rig.directory, "--json")[1])
        assert {what: found[what] for what in wanted} == wanted


def test_explain_says_that_a_guest_lost_its_place(rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rig.rewrite(resources={ANY: rule("any", at_once={"max": 1, "boot_s": 60, "lease_s": 60})})
    first, kbs = rig.guest(), rig.kbs()
    first.attest(kbs)
    kbs.release(ANY)
    first.cap()
    given = body(tmp_path, first)
    assert decided(run(capsys, "explain", given, "--broker", rig.directory, "--json")[1])["lease"] == "allowed"
    with rig.broker.history.releasing(ANY, "sha384:" + "33" * 48, _rule(rig), int(time.time()) + 61):
        pass
    assert decided(run(capsys, "explain", given, "--broker", rig.directory, "--json")[1])["lease"] == "rules.at-once"


def _rule(rig: Rig) -> ResourceRule:
    return rig.broker.rules.current().rules.resources[ANY]


def test_explain_reads_the_init_data_of_a_body(rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n'
    given = body(tmp_path, rig.guest(), lambda sent: replace(sent, init_data=text))
    assert run(capsys, "explain", given, "--broker", rig.directory)[::2] == (77, "initdata.digest")
    bound = rig.guest(mr_config_id=mr_config_id(text.encode()).hex())
    given = body(tmp_path, bound, lambda sent: replace(sent, init_data=text))
    assert run(capsys, "explain", given, "--broker", rig.directory)[::2] == (77, "appraisal.mr-config-id")


def test_explain_holds_a_bundle_against_a_brokers_rules(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server((rig.directory / "server.pem").read_bytes())
    policy = yaml.safe_load(server.policy_text())
    rig.rewrite(anchors=policy["anchors"], policies={"demo": copy.deepcopy(policy)})
    (rig.directory / "collateral" / "simulated.json").write_text(json.dumps(server.machine.intel.collateral()))
    document = json.loads(server.bundle("00" * 32)[0])
    given = tmp_path / "bundle.json"
    given.write_text(json.dumps(document))
    status, out, _ = run(capsys, "explain", given, "--broker", rig.directory, "--json")
    assert (status, decided(out)["lease"], decided(out)[MODEL_KEY]) == (0, "allowed", "rules.phase")
    given.write_text(json.dumps(document | {"attestation_result": "another"}))
    assert run(capsys, "explain", given, "--broker", rig.directory)[::2] == (77, "appraisal.bundle")


# -- all that is wrong


def test_explain_shows_all_that_is_wrong_and_not_only_the_first(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = rig.guest(debug=True, mr_td="ab" * 48, vbios="00.00.00.00.01")
    given = body(tmp_path, guest, lambda sent: replace(sent, nonce="B" * 43 + "="))
    status, out, code = run(capsys, "explain", given, "--broker", rig.directory, "--json")
    assert (status, code) == (77, "tdx.debug")
    said = json.loads(out)
    failed = {
        c["code"]
        for c in said["verification"]["claims"] + said["policies"]["demo"]["claims"]
        if c["outcome"] == "failed"
    }
    assert failed == {"tdx.debug", "quote.report-data", "gpu.nonce", "appraisal.mr-td", "appraisal.td-attributes"}
    assert set(decided(out).values()) == {"tdx.debug"}


def test_explain_judges_at_the_time_that_is_asked(rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = body(tmp_path, rig.guest())
    late = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 40 * 86_400))
    status, out, code = run(capsys, "explain", given, "--broker", rig.directory, "--at", late, "--json")
    assert (status, code) == (77, "collateral.expired")
    assert json.loads(out)["verification"]["time"] == parse_utc(late)


@pytest.mark.parametrize("at", ["", "now", "2026-11-24", "2026-11-24T10:00:00+01:00"])
def test_explain_takes_no_other_time(at: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["policy", "explain", "-", "--policy", "p", "--at", at])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        (b"", 65, "kbs.json"),
        (b"null", 65, "kbs.shape"),
        (b"[]", 65, "kbs.shape"),
        (b"{}", 65, "kbs.shape"),
        (b"\xff", 65, "kbs.json"),
        (b'{"format": "antechamber-evidence/1"}', 65, "bundle.shape"),
    ],
)
def test_explain_refuses_what_is_no_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes, status: int, code: str
) -> None:
    (tmp_path / "body.json").write_bytes(text)
    assert run(capsys, "explain", tmp_path / "body.json", "--policy", tmp_path / "p")[::2] == (status, code)


# -- by one policy


@pytest.fixture
def policy(rig: Rig, tmp_path: Path) -> Path:
    rules = yaml.safe_load((rig.directory / "policy.yaml").read_text())
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(rules["policies"]["demo"]))
    return path


def test_explain_holds_a_body_against_a_policy_file(
    rig: Rig, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    collateral = rig.directory / "collateral" / "simulated.json"
    given = body(tmp_path, rig.guest())
    by = ("--policy", policy, "--collateral", collateral)
    assert run(capsys, "explain", given, *by)[0] == 0
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given.read_bytes())))
    status, out, _ = run(capsys, "explain", "-", *by, "--json")
    assert (status, json.loads(out)["decisions"]) == (0, [])
    wrong = body(tmp_path, rig.guest(mr_td="ab" * 48))
    assert run(capsys, "explain", wrong, *by)[::2] == (77, "appraisal.mr-td")
    assert run(capsys, "explain", given, "--policy", policy)[::2] == (78, "cli.collateral")
    both = ("--broker", rig.directory, "--collateral", collateral)
    assert run(capsys, "explain", given, *both)[::2] == (78, "cli.collateral")


def test_explain_judges_a_bundle_as_verify_does(rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certificate = (rig.directory / "server.pem").read_bytes()
    server = Server(certificate, age_s=3600)
    text, policy = tmp_path / "bundle.json", tmp_path / "p.yaml"
    text.write_bytes(server.bundle("00" * 32)[0])
    policy.write_text(server.policy_text())
    status, out, _ = run(capsys, "explain", text, "--policy", policy, "--json")
    said = json.loads(out)
    assert (status, said["evidence"], said["phase"]) == (0, "bundle", "released")
    assert said["verification"]["time"] == server.time
    cli.main(["verify", "--bundle", str(text), "--policy", str(policy), "--json"])
    verified = json.loads(capsys.readouterr().out)
    names = {c["name"]: c for c in said["policies"]["policy"]["claims"] + said["verification"]["claims"]}
    assert {c["name"]: c for c in verified["claims"]}.items() <= names.items()
    late = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(server.time + 90_000))
    assert run(capsys, "explain", text, "--policy", policy, "--at", late)[::2] == (77, "appraisal.collateral-age")
    policy.write_text(server.policy_text(mr_owner=["11" * 48]))
    assert run(capsys, "explain", text, "--policy", policy)[::2] == (77, "appraisal.mr-owner")
    policy.write_text(Server(certificate).policy_text())
    status, out, code = run(capsys, "explain", text, "--policy", policy, "--json")
    assert (status, code) == (77, "collateral.signature")
    claims = {c["name"]: c["outcome"] for c in json.loads(out)["verification"]["claims"]}
    assert (claims["quote chain"], claims["replay"]) == ("not-appraised", "held")
    status, out, code = run(capsys, "explain", text, "--broker", rig.directory, "--json")
    assert (status, code) == (77, "quote.anchor")


def test_explain_finds_a_transcript_that_was_changed(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server((rig.directory / "server.pem").read_bytes())
    document = json.loads(server.bundle("00" * 32)[0])
    document["attestation_result"] = "another"
    text, policy = tmp_path / "bundle.json", tmp_path / "p.yaml"
    text.write_text(json.dumps(document))
    policy.write_text(server.policy_text())
    assert run(capsys, "explain", text, "--policy", policy)[::2] == (77, "appraisal.bundle")


# -- where a body comes from


def keep(rig: Rig, count: int) -> None:
    path = rig.directory / "broker.yaml"
    path.write_text(path.read_text().replace("keep_refused: 0", f"keep_refused: {count}"))


def test_body_of_a_refused_guest_is_kept_named_in_the_audit_and_explained(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(rig, 2)
    with serving(rig.directory, rig.intel, rig.nvidia) as kept:
        kept.guest().attest(kept.kbs())
        kept.guest(mr_td="ab" * 48).attest(kept.kbs())  # contraindicated
        for _ in range(2):
            with pytest.raises(BrokerDenied, match=r"tdx\.debug"):
                kept.guest(debug=True).attest(kept.kbs())
        records = [json.loads(r.evidence) for r in kept.broker.audit.records()]
    assert ["body" in r for r in records] == [False, True, True, True]
    files = sorted((rig.directory / "refused").iterdir())
    assert [f"refused/{f.name}" for f in files] == sorted(r["body"] for r in records[2:])  # the newest two
    assert {f.stat().st_mode & 0o777 for f in files} == {0o600}
    assert (rig.directory / "refused").stat().st_mode & 0o777 == 0o700
    assert run(capsys, "explain", files[0], "--broker", rig.directory)[::2] == (77, "tdx.debug")
    cli.main(["broker", "audit", str(rig.directory)])
    assert f"(kept as refused/{files[0].name})" in capsys.readouterr().out


def test_no_body_is_kept_unless_the_owner_asks(rig: Rig) -> None:
    rig.guest(mr_td="ab" * 48).attest(rig.kbs())
    assert not (rig.directory / "refused").exists()


def test_ring_of_bodies_is_bounded_in_number_and_bytes(tmp_path: Path) -> None:
    ring = RefusedBodies(tmp_path, 3)
    for now in range(10):
        ring.add(b"x", f"{now:032x}", now)
    ring.add(b"y", f"{9:032x}", 20)  # the same session again
    names = sorted(p.name[:10] for p in (tmp_path / "refused").iterdir())
    assert names == ["0000000007", "0000000008", "0000000020"]
    for now in range(30, 33):
        ring.add(bytes(MAX_BYTES // 2), f"{now:032x}", now)
    assert sum(p.stat().st_size for p in (tmp_path / "refused").iterdir()) <= MAX_BYTES


def test_guest_is_refused_as_before_when_its_body_cannot_be_kept(rig: Rig) -> None:
    (rig.directory / "refused").write_text("in the way")
    keep(rig, 2)
    with serving(rig.directory, rig.intel, rig.nvidia) as kept:
        kept.guest(mr_td="ab" * 48).attest(kept.kbs())
        assert [(r.decision, "body" in r.evidence) for r in kept.broker.audit.records()] == [("attested", False)]


# -- check


def test_check_says_what_a_policy_leaves_open(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "check", policy, "--json")
    found = json.loads(out)["policy"]
    assert status == 0
    assert "tdx.mr_seam: any value" in found
    assert "events.gpu: any content" in found
    assert any("NOT INTEL'S (simulated)" in end for end in found)
    assert "gpu.measurements: not appraised" in found
    assert not any("mr_td" in end or "UpToDate" in end for end in found)
    assert "accepts, in so many words:" in run(capsys, "check", policy)[1]


def test_check_says_what_rules_leave_open(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    rig.rewrite(lease=None)
    status, out, _ = run(capsys, "check", "--broker", rig.directory, "--json")
    found = json.loads(out)
    assert status == 0
    assert found[f"resource {ANY}"] == [
        "phase: any, so also to a guest that serves", "until: unlimited", "releases: unlimited", "at_once: unlimited",
    ]  # fmt: skip
    assert found["lease"] == ["nobody: no rule names it"]
    assert "certificates" not in found


def test_check_refuses_what_does_not_parse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.yaml").write_text("{}")
    assert run(capsys, "check", tmp_path / "p.yaml")[::2] == (78, "policy.missing")
