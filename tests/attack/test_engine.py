"""A host, a model owner or a caller that wants another engine, another model or what others asked."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from engines import NETWORK, UnixConnection, agent_log, ask, http_answer, launch, running, wire
from safetensors.numpy import load_file, save_file

from antechamber.engine import builtin, catalog, probe, process
from antechamber.engine.builtin import demo_model
from antechamber.engine.builtin.server import _logger
from antechamber.errors import ConfigError, EngineFailed

PROMPT, TOKENS = demo_model.GOLDEN_PROMPT, demo_model.GOLDEN_TOKENS
SECRET = "my-medical-history"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    demo_model.make(directory)
    return directory


def admit(model: Path, runtime: Path, accepted: tuple[str, ...]) -> None:
    plan = launch(model, runtime)
    with running(plan):
        probe.require_golden(accepted, probe.golden_text(Path(plan.socket), "demo", PROMPT, TOKENS))


def test_the_packed_model_is_admitted(model: Path, tmp_path: Path) -> None:
    admit(model, tmp_path, (builtin.golden(model, PROMPT, TOKENS),))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"])
def test_well_formed_weights_with_one_wrong_matrix_are_refused(model: Path, tmp_path: Path, name: str) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors[name] = np.ascontiguousarray(tensors[name][::-1])
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (wrong / file).write_bytes((model / file).read_bytes())
    save_file(tensors, wrong / "model.safetensors")
    with pytest.raises(EngineFailed) as refused:
        admit(wrong, tmp_path, (builtin.golden(model, PROMPT, TOKENS),))
    assert refused.value.code == "engine.golden"


def test_an_engine_that_parrots_the_sealed_text_with_more_behind_it_is_refused(tmp_path: Path) -> None:
    with (
        wire(tmp_path / "s", http_answer(200, b'{"choices":[{"text":"sealed and more"}]}')),
        pytest.raises(EngineFailed) as refused,
    ):
        probe.require_golden(("sealed",), probe.golden_text(tmp_path / "s", "demo", PROMPT, TOKENS))
    assert refused.value.code == "engine.golden"


def test_an_engine_for_which_nothing_is_sealed_is_refused() -> None:
    with pytest.raises(EngineFailed) as refused:
        probe.require_golden((), "")
    assert refused.value.code == "engine.golden"


def test_an_engine_that_dies_before_it_is_ready_is_refused(tmp_path: Path) -> None:
    plan = launch(tmp_path / "no-model", tmp_path)
    engine = process.start(plan, network=NETWORK)
    with pytest.raises(EngineFailed) as refused:
        probe.await_ready(Path(plan.socket), lambda: engine.alive, 60)
    assert refused.value.code == "engine.died"
    engine.stop()


def test_an_engine_killed_while_it_serves_is_noticed(model: Path, tmp_path: Path) -> None:
    with running(launch(model, tmp_path)) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineFailed) as refused:
            engine.watch(30)
    assert refused.value.code == "engine.died"


FORBIDDEN = [
    ("vllm", "--trust-remote-code"),
    ("vllm", "--trust_remote_code"),
    ("vllm", "--trust-remote"),
    ("vllm", "--enable-log-requests"),
    ("vllm", "--enable-log-outputs"),
    ("vllm", "--otlp-traces-endpoint=http://host"),
    ("vllm", "--middleware=evil.Middleware"),
    ("vllm", "--kv-transfer-config={}"),
    ("vllm", "--kv-transfer-config.kv_connector=x"),
    ("vllm", "--allowed-local-media-path=/"),
    ("vllm", "--tool-parser-plugin=/model/x.py"),
    ("vllm", "--config=/model/evil.yaml"),
    ("vllm", "--host=0.0.0.0"),
    ("vllm", "--uds=/tmp/other"),
    ("vllm", "--nnodes=2"),
    ("vllm", "-O3"),
    ("sglang", "--enable-custom-logit-processor"),
    ("sglang", "--log-requests"),
    ("sglang", "--crash-dump-folder=/tmp"),
    ("sglang", "--dist-init-addr=host:1"),
    ("tgi", "--ngrok"),
    ("tgi", "--trust-remote-code"),
    ("tensorrt-llm", "--config=/model/evil.yaml"),
    ("tensorrt-llm", "--custom_module_dirs=/model"),
    ("tensorrt-llm", "--trust_remote_code"),
    ("builtin", "--socket=/tmp/other"),
]


@pytest.mark.parametrize(("kind", "option"), FORBIDDEN)
def test_options_that_open_a_way_around_are_refused(kind: str, option: str) -> None:
    with pytest.raises(ConfigError) as refused:
        catalog.plan(kind=kind, image="", options=(option,), model=Path("/m"), name="demo", socket=Path("/run/e/s"))
    assert refused.value.code == "engine.option"


def test_a_forbidden_option_hidden_as_a_value_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        catalog.permitted("vllm", ("--dtype", "--trust-remote-code"))
    assert refused.value.code == "engine.option"


def test_the_agents_environment_does_not_reach_the_engine(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LD_PRELOAD", "PYTHONPATH", "PYTHONSTARTUP", "VLLM_SERVER_DEV_MODE", "HF_TOKEN", "NOTIFY_SOCKET"):
        monkeypatch.setenv(name, f"/evil/{SECRET}")
    plan = launch(model, tmp_path)
    with running(plan) as engine:
        seen = Path(f"/proc/{engine.pid}/environ").read_bytes().rstrip(b"\0").decode().split("\0")
    assert dict(line.split("=", 1) for line in seen) == plan.env


def test_no_prompt_and_no_answer_is_logged(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = launch(model, tmp_path)
    with running(plan):
        for url, body in (
            ("/v1/completions", {"model": "demo", "prompt": SECRET, "max_tokens": 4}),
            ("/v1/completions", {"model": SECRET, "prompt": SECRET}),
            ("/v1/chat/completions", {"model": "demo", "messages": [{"role": SECRET, "content": SECRET}]}),
            ("/v1/completions", {"model": "demo", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}),
        ):
            answer = ask(plan.socket, "POST", url, body)[1]
            assert SECRET.encode() not in answer
        ask(plan.socket, "POST", f"/{SECRET}", f'{{"prompt": {SECRET}'.encode())
        broken = UnixConnection(plan.socket)
        broken.connect()
        broken.sock.sendall(f"POST {SECRET} {SECRET}\r\n{SECRET}\r\n\r\n".encode())
        assert b"400" in broken.sock.recv(4096)
        broken.close()
    with agent_log():
        _logger().error(
            "could not parse %r", SECRET, exc_info=ValueError(SECRET)
        )  # as aiohttp does when a handler fails
    logged = "".join(capfd.readouterr())
    assert "engine.listening" in logged
    assert "request failed: ValueError" in logged
    assert SECRET not in logged
    assert "room before" not in logged
