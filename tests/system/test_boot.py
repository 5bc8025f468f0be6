"""From an unproven machine to a proven answer, and every way there is not."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from openai import OpenAI
from processes import with_words

from antechamber.client.pinned import openai_http_client
from antechamber.evidence.policy import load_policy
from antechamber.simulator.deployment import CommandFailed, Deployment, events, listening

QUESTION = [{"role": "user", "content": "What is Antechamber?"}]


@pytest.fixture
def served(deployment: Deployment):
    """A guest that serves."""
    (deployment.root / "guest.log").unlink(missing_ok=True)
    deployment.start_guest()
    deployment.await_serving()
    yield deployment
    deployment.stop_guest()


def curl(deployment: Deployment, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = ["curl", "--silent", "--show-error", "--cacert", str(deployment.guest_ca), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.curl
def test_guest_answers_openai_curl_and_verify_when_it_booted(served: Deployment) -> None:
    policy = load_policy(served.client_policy.read_bytes())
    with openai_http_client(served.url, policy) as http_client:
        client = OpenAI(base_url=f"{served.url}/v1", api_key="-", http_client=http_client, max_retries=0)
        whole = client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=64, temperature=0)
        stream = client.chat.completions.create(
            model="demo", messages=QUESTION, max_tokens=64, temperature=0, stream=True
        )
        pieces = [c.choices[0].delta.content or "" for c in stream if c.choices]
    assert "room before the chamber" in (whole.choices[0].message.content or "")
    assert len(pieces) > 3
    assert "".join(pieces) == whole.choices[0].message.content

    models = curl(served, f"{served.url}/v1/models")
    assert json.loads(models.stdout)["data"][0]["id"] == "demo"
    body = json.dumps({"model": "demo", "messages": QUESTION, "max_tokens": 8, "stream": True})
    asked = ["--data", body, "--header", "content-type: application/json", "--header", "x-attestation: required"]
    answer = curl(served, "--include", *asked, f"{served.url}/v1/chat/completions").stdout
    digest = re.search(r"(?mi)^x-tdx-quote-sha256: ([0-9a-f]{64})", answer)
    assert digest is not None
    assert re.search(r"(?mi)^x-tdx-quote: [A-Za-z0-9+/=]{6000,8190}\r?$", answer)
    assert answer.rstrip().endswith("data: [DONE]")

    saved = served.root / "bundle.json"
    policy_file = ("--policy", str(served.client_policy))
    served.antechamber("verify", served.url, *policy_file, "--quote", digest.group(1), "--save", str(saved))
    report = json.loads(served.antechamber("verify", "--bundle", str(saved), *policy_file, "--json"))
    assert report["ok"] is True

    status = json.loads(served.antechamber("status", "--json", "--socket", str(served.runtime_dir / "agent.sock")))
    assert (status["state"], status["verdict"]) == ("serving", "good")
    assert served.stop_guest() == 0
    assert not listening(served.guest_port)
    assert not (served.runtime_dir / "model").exists()


def test_saved_bundle_is_refused_when_a_byte_of_it_changed(served: Deployment) -> None:
    saved = served.root / "bundle.json"
    policy_file = ("--policy", str(served.client_policy))
    served.antechamber("verify", served.url, *policy_file, "--save", str(saved))
    bundle = json.loads(saved.read_text())
    inner = json.loads(bundle["transcript"])
    bundle["transcript"] = json.dumps(inner | {"model": "sha256:" + "0" * 64})
    saved.write_text(json.dumps(bundle))
    with pytest.raises(CommandFailed, match="77") as refused:
        served.antechamber("verify", "--bundle", str(saved), *policy_file)
    assert "quote.report-data" in refused.value.hint


@pytest.mark.parametrize("text", ["", "{}", "version: 1\n", "["])
def test_verify_refuses_when_the_policy_is_empty_or_incomplete(deployment: Deployment, text: str) -> None:
    empty = deployment.root / "empty.yaml"
    empty.write_text(text)
    with pytest.raises(CommandFailed, match="78") as refused:
        deployment.antechamber("verify", "https://127.0.0.1:1", "--policy", str(empty))
    assert "policy." in refused.value.hint


@pytest.mark.parametrize(
    ("knob", "code", "status"),
    [
        ("debug=true", "tdx.debug", 77),
        ("cc=false", "gpu.cc-mode", 69),
        ("devtools=true", "gpu.cc-mode", 69),
        ("ready=true", "gpu.ready", 69),
        ("gpus=2", "gpu.inventory", 69),
        ("gpus=0", "gpu.inventory", 69),
        ("persistenced=false", "gpu.persistenced", 69),
        ("registry_dwords=RmConfidentialCompute=0x4", "gpu.registry", 69),
        ("kernel=6.12.117+deb13-amd64", "host.kernel", 69),
        ("cmdline=ro init=/bin/sh", "host.cmdline", 69),
        ("swap=/dev/vdb", "host.swap", 69),
        ("core_pattern=core", "host.core", 69),
        ("ptrace_scope=0", "host.ptrace", 69),
        ("kexec_disabled=false", "host.kexec", 69),
        ("credential=ssh.authorized_keys", "host.credentials", 69),
        ("image_variant=prod", "host.anchor", 69),
        ("tdx_guest=false", "host.tdx-guest", 69),
        ("quote_errno=5", "tsm.io", 75),
        (f"mr_td={'11' * 48}", "broker.denied", 77),
        (f"mr_config_id={'11' * 48}", "broker.denied", 77),
        ("driver=535.104.05", "broker.denied", 77),
    ],
)
def test_boot_is_refused_when_the_machine_is_wrong(deployment: Deployment, knob: str, code: str, status: int) -> None:
    refusal = deployment.boot_refused(knob)
    assert refusal["code"] == code
    assert refusal["hint"]
    assert deployment.guest is not None
    assert deployment.guest.returncode == status
    assert not listening(deployment.guest_port)
    assert not (deployment.runtime_dir / "model").exists()
    assert "engine.exec" not in {e["event"] for e in events(deployment.root / "guest.log")}


def _with(path: Path, change: dict[str, Any]) -> str:
    """Change a YAML file's members; its former text."""
    before = path.read_text()
    document = yaml.safe_load(before)
    for dotted, value in change.items():
        target = document
        *parents, last = dotted.split(".")
        for parent in parents:
            target = target[parent]
        target[last] = value
    path.write_text(json.dumps(document))
    return before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model.hash": "sha256:" + "0" * 64}, "broker.denied"),  # measured, so the broker sees it first
        ({"trust.collateral_signer": "A" * 43 + "="}, "collateral.signature"),
        ({"trust.time_floor": "2099-01-01T00:00:00Z"}, "collateral.time"),
        ({"trust.nvidia": "nvidia"}, "gpu.anchor"),
        ({"broker.url": "https://127.0.0.1:1"}, "broker.unreachable"),
        ({"broker.ca": "/etc/ssl/certs/ca-certificates.crt"}, "broker.tls"),
        ({"runtime_dir": "/var/tmp/antechamber-not-tmpfs"}, "host.runtime-dir"),
        ({"engine.options": ["--trust-remote-code"]}, "engine.option"),
        ({"gateway.names": ["llm.attacker.example"]}, "broker.denied"),
        ({"model.key": "kbs:///default/model-key/other"}, "broker.denied"),  # so is the configuration
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else v,
)
def test_boot_is_refused_when_the_configuration_is_wrong(deployment: Deployment, change: dict, code: str) -> None:
    before = _with(deployment.config, change)
    try:
        assert deployment.boot_refused()["code"] == code
    finally:
        deployment.config.write_text(before)
    assert not listening(deployment.guest_port)


def test_guest_ends_and_wipes_when_the_broker_takes_its_verdict_back(served: Deployment) -> None:
    rules = served.broker_dir / "policy.yaml"
    before = _with(rules, {"policies.demo.tdx.mr_td": ["22" * 48]})
    try:
        refusal = served.refusal()
    finally:
        rules.write_text(before)
    assert refusal["code"] in ("broker.denied", "broker.attest")
    assert served.guest is not None
    assert served.guest.returncode == 77
    assert not listening(served.guest_port)
    assert not (served.runtime_dir / "model").exists()


@pytest.mark.parametrize(("part", "code"), [("antechamber.engine.builtin", "engine.died"), ("gateway", "gateway.died")])
def test_guest_ends_and_wipes_when_a_part_dies(served: Deployment, part: str, code: str) -> None:
    pids = with_words("-I -m", part, str(served.runtime_dir))
    assert pids
    for pid in pids:
        os.kill(pid, 9)
    assert served.refusal()["code"] == code
    assert not listening(served.guest_port)
    assert not (served.runtime_dir / "model").exists()


@pytest.mark.root
@pytest.mark.curl
@pytest.mark.parametrize("command", ["run", "boot"])
def test_engine_runs_as_its_own_user_when_one_is_configured(separated: Deployment, command: str) -> None:
    (separated.root / "guest.log").unlink(missing_ok=True)
    separated.start_guest(command=command)
    agent = str(separated.runtime_dir / "agent.sock")
    parts: list[subprocess.Popen[bytes]] = []
    try:
        if command == "boot":
            while not Path(agent).exists():
                assert separated.guest is not None
                assert separated.guest.poll() is None, separated.refusal()
            argv = [sys.executable, "-m", "antechamber"]
            parts = [subprocess.Popen([*argv, part, "--socket", agent]) for part in ("exec", "gateway")]
        separated.await_serving()
        answer = curl(separated, f"{separated.url}/v1/models")
        assert json.loads(answer.stdout)["data"][0]["id"] == "demo"
        (engine,) = with_words("-I -m antechamber.engine.builtin", str(separated.runtime_dir))
        assert psutil.Process(engine).username() == "nobody"
        assert (separated.runtime_dir / "model").stat().st_mode & 0o007 == 0
    finally:
        for part in parts:
            part.kill()
            part.wait()
        separated.stop_guest()


def test_parts_refuse_when_no_boot_hands_over(deployment: Deployment) -> None:
    for part in ("exec", "gateway", "status"):
        with pytest.raises(CommandFailed) as refused:
            deployment.antechamber(part, "--socket", str(deployment.root / "none.sock"))
        assert "code='handover.none'" in refused.value.hint, part


@pytest.mark.curl
def test_boot_hands_over_once_when_systemd_starts_the_parts(deployment: Deployment) -> None:
    (deployment.root / "guest.log").unlink(missing_ok=True)
    deployment.start_guest(command="boot")
    agent = deployment.runtime_dir / "agent.sock"
    argv = [sys.executable, "-m", "antechamber"]
    while not agent.exists():
        assert deployment.guest is not None
        assert deployment.guest.poll() is None, deployment.refusal()
    engine = subprocess.Popen([*argv, "exec", "--socket", str(agent)])
    gateway = subprocess.Popen([*argv, "gateway", "--socket", str(agent)])
    try:
        deployment.await_serving()
        assert json.loads(curl(deployment, f"{deployment.url}/v1/models").stdout)["data"][0]["id"] == "demo"
        for part in ("exec", "gateway"):
            with pytest.raises(CommandFailed) as refused:
                deployment.antechamber(part, "--socket", str(agent))
            assert "handover.spent" in refused.value.hint, part
    finally:
        engine.kill()
        gateway.kill()
        deployment.stop_guest()
        engine.wait()
        gateway.wait()


@pytest.mark.curl
def test_port_speaks_tls_1_3_only_when_it_serves(served: Deployment) -> None:
    old = curl(served, "--tls-max", "1.2", f"{served.url}/v1/models")
    assert old.returncode == 35
    with socket.create_connection(("127.0.0.1", served.guest_port), timeout=5) as plain:
        plain.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in plain.recv(100)
