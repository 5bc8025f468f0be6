"""The double is what the reference says: the kit's strict profile, which knows no deviation, passes against it."""

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import Clock
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from interop.kit.__main__ import admin_tokens, main, parser
from interop.kit.attesters import Attester, Sample, Simulated
from interop.kit.core import SERVER, Options, run
from interop.kit.jose import verify_token
from interop.kit.wire import Wire
from interop.trustee import authority, serving
from interop.trustee import main as double_command
from interop.trustee_double import Double, Knobs
from interop.trustee_seal import Signer

from antechamber.simulator.intel import IntelPki
from antechamber.simulator.machine import Machine
from antechamber.simulator.nvidia import NvidiaPki

pytestmark = [
    pytest.mark.filterwarnings("ignore:EdDSA is deprecated"),
    pytest.mark.filterwarnings("ignore:JWE algorithm"),  # RSA1_5, which the kit asks for
]
# The double writes neither the quote nor the event log into its claims.
ASKED = [
    (s, w) for s in SERVER for w in ("sample", "simulator") if s not in ("token.ear", "token.events") or w == "sample"
]


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Clock, Double]]:
    directory, clock = tmp_path_factory.mktemp("double"), Clock()
    key = Ed25519PrivateKey.generate()
    (directory / "admin.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    signer, ca = authority()
    double = Double(Knobs(), signer, ca, {"default/any/1": b"a key", "default/boot/1": b"another"}, clock=clock)
    double.admin = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with serving(double, directory) as url:
        yield url, directory, clock, double


INTEL, NVIDIA = IntelPki(), NvidiaPki()


@pytest.mark.parametrize(("scenario", "who"), ASKED)
def test_double_passes_the_strict_profile(double: tuple[str, Path, Clock, Double], scenario: str, who: str) -> None:
    url, directory, clock, _ = double
    clock.ahead = 0
    options = Options(
        boot_resource="default/boot/1",
        denied="denied/a/1",
        token_ca=(directory / "ca.pem").read_bytes(),
        admin_token=admin_tokens(parser().parse_args(["--admin-key", str(directory / "admin.key")])),
        throwaway=True,
        wait=clock.wait,
    )

    def attester() -> Attester:
        return Sample() if who == "sample" else Simulated(Machine(INTEL, NVIDIA), {"model": "sha256:" + "11" * 32})

    verdict = run(scenario, Wire(url, str(directory / "ca.pem")), attester, options, "trustee")
    allowed = ("pass", "not-applicable") if who == "sample" else ("pass",)
    assert verdict.outcome in allowed, verdict


BROKEN = [
    ({"version": "0.5.0"}, "version.exact"),
    ({"nonce": "_" * 43 + "="}, "auth.challenge"),
    ({"nonce": base64.b64encode(bytes(32)).decode()}, "auth.challenge"),  # not fresh
    ({"cookie_path": "/"}, "auth.cookie"),
    ({"kind": "text/plain"}, "attest.answer"),
    ({"refuse": True}, "attest.answer"),
    ({"order": "enc-first"}, "jwe.header-order"),
    ({"order": "enc-first"}, "jwe.p-521"),
    ({"aad": "x"}, "jwe.aad"),
    ({"alg": "RSA1_5"}, "jwe.rsa-oaep"),
    ({"lose": 1}, "resource.answer"),
    ({"deny": True}, "resource.answer"),
    ({"status": 201}, "resource.answer"),
    ({"html": True}, "resource.no-session"),
    ({"content_type": "application/json"}, "error.content-type"),
    ({"expired": 1}, "token.bearer"),
]


@pytest.mark.parametrize(("knobs", "scenario"), BROKEN, ids=str)
def test_kit_fails_a_server_that_does_otherwise(tmp_path: Path, knobs: dict[str, Any], scenario: str) -> None:
    signer, ca = authority()
    with serving(Double(Knobs(**knobs), signer, ca, {"default/any/1": b"a key"}), tmp_path) as url:
        verdict = run(scenario, Wire(url, str(tmp_path / "ca.pem")), Sample, Options(), "trustee")
    assert verdict.outcome == "fail", verdict


@pytest.mark.parametrize("scenario", ["metrics", "resource.missing", "auth.cookie"])
def test_deviation_that_a_server_does_not_have_fails_too(tmp_path: Path, scenario: str) -> None:
    signer, ca = authority()
    with serving(Double(Knobs(), signer, ca), tmp_path) as url:
        verdict = run(scenario, Wire(url, str(tmp_path / "ca.pem")), Sample, Options(), "antechamber")
    assert (verdict.outcome, "listed for nothing" in verdict.detail) == ("fail", True)


def test_kit_says_what_it_was_not_given(tmp_path: Path) -> None:
    signer, ca = authority()
    with serving(Double(Knobs(), signer, ca), tmp_path) as url:
        wire = Wire(url, str(tmp_path / "ca.pem"))
        said = {
            s: run(s, wire, Sample, Options(), "trustee") for s in ("resource.denied", "admin.large", "token.expired")
        }
    assert {v.outcome for v in said.values()} == {"not-applicable"}
    assert [v.detail.rpartition("give ")[2][:12] for v in said.values()] == ["--denied, a ", "--admin-key", "--wait"]


def test_server_that_is_not_there_fails_every_scenario_and_ends_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--url", "http://127.0.0.1:9", "--only", "health"]) == 1
    assert "ConnectionRefusedError" in capsys.readouterr().out


WRONG = [
    (["--only", "nosuch"], "no scenario nosuch"),
    (["--only", "health", "--only", "heath"], "no scenario heath"),
    (["--url", "ftp://kbs"], "not an http or https URL"),
    (["--ca", "/nonexistent/ca.pem"], "--ca /nonexistent/ca.pem is no file"),
    (["--ca", __file__, "--url", "https://127.0.0.1:9"], "SSLError"),
    (["--admin-key", "/nonexistent/admin.key"], "/nonexistent/admin.key"),
    (["--admin-key", __file__], "PEM"),
    (["--attester", "simulator"], "needs --simulator-state"),
    (["--attester", "simulator", "--simulator-state", "/nonexistent"], "/nonexistent is no directory"),
    (["--attester", "simulator", "--simulator-state", "/", "--event", "model"], "model is not NAME=CONTENT"),
    (["--wait", "0"], "--wait"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=str)
def test_wrong_command_is_a_usage_error_that_names_what_is_wrong(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--url", "http://127.0.0.1:9", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "nonsense"], "is not ADDRESS:PORT"),
        (["--resource", "foo"], "foo is not PATH=TEXT"),
        (["--knob", "nosuch=1"], "no knob nosuch"),
        (["--knob", "lose=often"], "lose is a number"),
        (["--knob", "deny=false"], "deny is 1 or 0"),
    ],
    ids=str,
)
def test_wrong_command_of_the_double_is_a_usage_error(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        double_command(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def token(**changes: Any) -> tuple[str, bytes]:
    signer, ca = authority()
    return signer.token({"exp": int(time.time()) + 300, "tee-pubkey": {}} | changes), ca


def test_token_verifies_as_trustees() -> None:
    text, ca = token()
    assert verify_token(text, ca, time.time()).claims["tee-pubkey"] == {}
    assert verify_token(text, None, time.time()).header["alg"] == "ES256"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exp": 1}, "exp is 1"),
        ({"exp": None}, "exp is None"),
        ({"exp": 1e12}, "exp is 1"),
        ({"exp": True}, "exp is True"),
        ({"nbf": 4_000_000_000}, "nbf is 4000000000"),
        ({"nbf": "soon"}, "nbf is 'soon'"),
    ],
    ids=str,
)
def test_token_is_refused_for_its_times(changes: dict[str, Any], words: str) -> None:
    text, ca = token(**changes)
    with pytest.raises(ValueError, match=words):
        verify_token(text, ca, time.time())


def test_token_is_refused_for_its_signer() -> None:
    text, _ = token()
    other, theirs = authority()
    with pytest.raises(ValueError, match="not issued by the next"):
        verify_token(text, theirs, time.time())
    signer, _ = authority()
    crossed = Signer(signer.key, other.chain).token({"exp": int(time.time()) + 300})
    with pytest.raises(ValueError, match="the leaf's key is not the jwk"):
        verify_token(crossed, theirs, time.time())
    with pytest.raises(ValueError, match="is not valid now"):
        verify_token(text, None, time.time() + 30 * 86400)
    head, payload, _ = text.split(".")
    with pytest.raises(ValueError, match="signature does not verify"):
        verify_token(f"{head}.{payload}.{'A' * 86}", None, time.time())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_double_serves_by_itself(tmp_path: Path, number: int) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "interop.trustee", "--listen", "127.0.0.1:0", "--resource", "a/b/1=test"]
    command += ["--knob", "padding=10", "--tls", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(root / "tests")}
    background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]  # as a shell without job control does it
    with subprocess.Popen(background, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            options = Options(resource="a/b/1", token_ca=(tmp_path / "ca.pem").read_bytes())
            wire = Wire(url, str(tmp_path / "ca.pem"))
            assert run("token.verify", wire, Sample, options, "trustee").outcome == "pass"
            assert run("jwe.p-256", wire, Sample, options, "trustee").outcome == "pass"
        finally:
            process.send_signal(number)
            try:
                status = process.wait(10)
            finally:
                process.kill()
        assert status == 0
