"""The whole engine as a process on its socket, and its server in this process where time must be watched."""

import asyncio
import dataclasses
import json
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web
from engines import agent_log, ask, launch, running

from antechamber.engine.builtin import demo_model
from antechamber.engine.builtin.__main__ import main
from antechamber.engine.builtin.generate import Model
from antechamber.engine.builtin.server import Limits, Server

QUESTION = "Where do you run?"
ANSWER = demo_model._ANSWERS[QUESTION]
CHAT = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    demo_model.make(directory)
    return directory


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    plan = launch(model, tmp_path_factory.mktemp("r"), ("--max-model-len", "256"))
    with running(plan):
        yield plan.socket


def post(engine: str, url: str, body: bytes | dict[str, Any]) -> tuple[int, Any]:
    status, raw = ask(engine, "POST", url, body)
    return status, json.loads(raw)


def events(engine: str, url: str, body: dict[str, Any]) -> list[Any]:
    status, raw = ask(engine, "POST", url, body | {"stream": True})
    assert status == 200
    lines = raw.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_chat_answers_whole(engine: str) -> None:
    status, body = post(engine, "/v1/chat/completions", CHAT)
    assert status == 200
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == ANSWER
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]


def test_chat_streams_the_same_text_and_then_its_usage(engine: str) -> None:
    chunks = events(engine, "/v1/chat/completions", CHAT | {"stream_options": {"include_usage": True}})
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == ANSWER
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]][-2:] == [None, "stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == post(engine, "/v1/chat/completions", CHAT)[1]["usage"]
    assert all(c["usage"] is None for c in chunks[:-1])
    assert len({c["id"] for c in chunks}) == 1


def test_completion_answers_whole_and_streamed(engine: str) -> None:
    asked = {"model": "demo", "prompt": QUESTION, "temperature": 0, "max_tokens": 60}
    body = post(engine, "/v1/completions", asked)[1]
    assert (body["object"], body["choices"][0]["text"]) == ("text_completion", " " + ANSWER)
    chunks = events(engine, "/v1/completions", asked)
    assert "".join(c["choices"][0]["text"] for c in chunks) == " " + ANSWER
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in chunks[0]


def test_completion_ends_at_max_tokens_and_at_a_stop_string(engine: str) -> None:
    asked = {"model": "demo", "prompt": QUESTION, "temperature": 0}
    short = post(engine, "/v1/completions", asked | {"max_tokens": 2})[1]
    assert (short["choices"][0]["finish_reason"], short["usage"]["completion_tokens"]) == ("length", 2)
    stopped = post(engine, "/v1/completions", asked | {"stop": " virtual", "max_tokens": 60})[1]
    assert stopped["choices"][0] == {
        "index": 0,
        "finish_reason": "stop",
        "logprobs": None,
        "text": " In a confidential",
    }


def test_seeded_sampling_repeats_itself(engine: str) -> None:
    asked = {"model": "demo", "prompt": "zzz", "temperature": 2, "seed": 5, "max_tokens": 20}
    texts = {post(engine, "/v1/completions", asked)[1]["choices"][0]["text"] for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("method", "url", "body", "status", "code"),
    [
        ("POST", "/v1/chat/completions", CHAT | {"model": "other"}, 404, "model_not_found"),
        ("POST", "/v1/chat/completions", b"{", 400, None),
        ("POST", "/v1/chat/completions", b"", 400, None),
        ("POST", "/v1/chat/completions", CHAT | {"max_tokens": 256}, 400, "context_length_exceeded"),
        ("POST", "/v1/completions", {"model": "demo", "prompt": "word " * 300}, 400, "context_length_exceeded"),
        ("POST", "/v1/completions", {"model": "demo", "prompt": [512]}, 400, None),
        ("POST", "/v1/completions", {"model": "demo", "prompt": "x" * (9 << 20)}, 413, None),
        ("GET", "/v1/chat/completions", None, 405, None),
        ("POST", "/v1/embeddings", {}, 404, None),
        ("POST", "/invocations", {}, 404, None),
    ],
)
def test_errors_have_openais_shape(
    engine: str, method: str, url: str, body: bytes | dict[str, Any] | None, status: int, code: str | None
) -> None:
    seen, raw = ask(engine, method, url, body)
    assert seen == status
    error = json.loads(raw)["error"]
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"


def test_models_and_health_answer(engine: str) -> None:
    assert ask(engine, "GET", "/health") == (200, b"")
    entry = json.loads(ask(engine, "GET", "/v1/models")[1])["data"][0]
    assert (entry["id"], entry["max_model_len"]) == ("demo", 256)


def test_socket_is_for_user_and_group_only(engine: str) -> None:
    assert Path(engine).stat().st_mode & 0o777 == 0o770


def client(engine: str) -> openai.OpenAI:
    wire = httpx.Client(transport=httpx.HTTPTransport(uds=engine))
    return openai.OpenAI(base_url="http://engine/v1", api_key="none", http_client=wire, max_retries=0)


def test_openais_client_chats_and_streams(engine: str) -> None:
    messages: Any = CHAT["messages"]
    with client(engine) as ours:
        assert [m.id for m in ours.models.list()] == ["demo"]
        whole = ours.chat.completions.create(model="demo", messages=messages, temperature=0)
        assert whole.choices[0].message.content == ANSWER
        stream = ours.chat.completions.create(
            model="demo", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
        assert chunks[-1].usage == whole.usage
        assert ours.completions.create(model="demo", prompt="Hello", temperature=0).choices[0].text.startswith(" Hello")


def test_openais_client_reads_errors(engine: str) -> None:
    with client(engine) as ours:
        with pytest.raises(openai.NotFoundError) as missing:
            ours.completions.create(model="other", prompt="Hello")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as unsupported:
            ours.completions.create(model="demo", prompt="Hello", n=2)
        assert unsupported.value.param == "n"


def endless(directory: Path) -> Model:
    """The demo model without an end token, in a context that takes minutes to fill."""
    model = Model.load(directory)
    arch = dataclasses.replace(model.llama.arch, context=200_000)
    tokens = dataclasses.replace(model.tokens, eos=frozenset())
    return Model(dataclasses.replace(model.llama, arch=arch), tokens)


ENDLESS = {"model": "demo", "prompt": "Hello", "max_tokens": 100_000, "stream": True}


def serving(
    model: Path, tmp_path: Path, limits: Limits, talk: Callable[[Server, str], Coroutine[Any, Any, None]]
) -> None:
    async def run() -> None:
        server = Server(endless(model), "demo", limits)
        runner = web.AppRunner(server.application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / "s")).start()
        try:
            await asyncio.wait_for(talk(server, str(tmp_path / "s")), 60)
        finally:
            await runner.cleanup()

    asyncio.run(run())


async def send(path: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(path)
    raw = json.dumps(body).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
    await writer.drain()
    return reader, writer


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_computation_ends_when_the_client_goes(model: Path, tmp_path: Path, stream: bool) -> None:
    async def talk(server: Server, path: str) -> None:
        reader, writer = await send(path, ENDLESS | {"stream": stream})
        if stream:
            assert await reader.readuntil(b"data: ")
        await until(lambda: server._slots.locked())
        writer.close()
        await until(lambda: server._present == 0)
        assert not server._slots.locked()

    serving(model, tmp_path, Limits(running=1, waiting=0), talk)


def test_requests_beyond_the_queue_are_told_to_come_back(model: Path, tmp_path: Path) -> None:
    async def talk(server: Server, path: str) -> None:
        first, first_writer = await send(path, ENDLESS)
        await first.readuntil(b"data: ")
        second, second_writer = await send(path, ENDLESS | {"max_tokens": 1, "stream": False})
        await until(lambda: server._present == 2)
        third, third_writer = await send(path, ENDLESS)
        assert b" 503 " in await third.readline()
        assert json.loads((await third.read(4096)).split(b"\r\n\r\n")[1])["error"]["type"] == "server_error"
        first_writer.close()  # the second's turn
        assert b" 200 " in await second.readline()
        for writer in (second_writer, third_writer):
            writer.close()

    serving(model, tmp_path, Limits(running=1, waiting=1), talk)


@pytest.mark.parametrize("option", [("--max-model-len", "513"), ("--max-model-len", "0"), ("--max-num-seqs", "0")])
def test_main_refuses_options_out_of_range(model: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    argv = ["--model", str(model), "--socket", str(tmp_path / "s"), "--served-model-name", "demo", *option]
    with agent_log():
        assert main(argv) == 70


def test_main_refuses_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model", str(tmp_path), "--socket", str(tmp_path / "s"), "--served-model-name", "demo"]
    with agent_log():
        assert main(argv) == 70
    assert "engine.model" in capsys.readouterr().err


def test_sigterm_lets_an_answer_end_and_removes_the_socket(model: Path, tmp_path: Path) -> None:
    plan = launch(model, tmp_path)
    with running(plan) as engine:
        with socket.socket(socket.AF_UNIX) as idle:
            idle.connect(plan.socket)
            engine.stop(grace_s=20)
        assert engine.exit_status == 0
    assert not Path(plan.socket).exists()
