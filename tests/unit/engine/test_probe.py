import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from engines import http_answer, refusals, wire
from hypothesis import given
from hypothesis import strategies as st

from antechamber.engine import probe
from antechamber.engine.builtin.tokens import Message
from antechamber.errors import EngineFailed

COMPLETION = http_answer(200, json.dumps({"choices": [{"text": " yes"}]}).encode())


def code_of(call: object, *args: object, **options: object) -> str:
    with pytest.raises(EngineFailed) as refused:
        call(*args, **options)  # type: ignore[operator]
    return refused.value.code


def test_await_ready_returns_once_health_is_200(tmp_path: Path) -> None:
    with wire(tmp_path / "s", http_answer(503), http_answer(503), http_answer(200)) as seen:
        probe.await_ready(tmp_path / "s", lambda: True, 20)
    assert len(seen) == 3


def test_await_ready_waits_for_a_socket_that_is_not_there_yet(tmp_path: Path) -> None:
    stop = threading.Event()

    def late() -> None:
        with wire(tmp_path / "s", http_answer(200)):
            stop.wait(20)

    timer = threading.Timer(0.2, late)
    timer.start()
    probe.await_ready(tmp_path / "s", lambda: True, 20)
    stop.set()
    timer.join()


def test_await_ready_refuses_when_time_is_up(tmp_path: Path) -> None:
    assert code_of(probe.await_ready, tmp_path / "s", lambda: True, 0.1) == "engine.timeout"


def test_await_ready_refuses_when_the_engine_died(tmp_path: Path) -> None:
    lives = iter([True, True, False])
    assert code_of(probe.await_ready, tmp_path / "s", lambda: next(lives), 20) == "engine.died"


def test_await_ready_refuses_what_is_no_http(tmp_path: Path) -> None:
    with wire(tmp_path / "s", b"SSH-2.0-OpenSSH\r\n"):
        assert code_of(probe.await_ready, tmp_path / "s", lambda: True, 20) == "engine.protocol"


def test_golden_text_asks_a_completion_greedily_for_a_string(tmp_path: Path) -> None:
    with wire(tmp_path / "s", COMPLETION) as seen:
        assert probe.golden_text(tmp_path / "s", "m", "Hello", 3) == " yes"
    assert json.loads(seen[0]) == {
        "model": "m",
        "prompt": "Hello",
        "max_tokens": 3,
        "temperature": 0,
        "stream": False,
    }


def test_golden_text_asks_a_chat_for_messages(tmp_path: Path) -> None:
    answer = http_answer(200, json.dumps({"choices": [{"message": {"content": "yes"}}]}).encode())
    with wire(tmp_path / "s", answer) as seen:
        assert probe.golden_text(tmp_path / "s", "m", (Message("user", "Hello"),), 3) == "yes"
    assert json.loads(seen[0])["messages"] == [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (http_answer(404), "engine.protocol"),
        (http_answer(200, b"{}"), "engine.protocol"),
        (http_answer(200, b'{"choices":[{"text":null}]}'), "engine.protocol"),
        (http_answer(200, b'{"choices":[{"text":"a","text":"b"}]}'), "engine.protocol"),
        (http_answer(200, b" " * (1 << 20) + b"{}"), "engine.protocol"),
        (b"HTTP/1.1 200 X\r\nContent-Length: 99\r\n\r\nshort", "engine.protocol"),
        (b"", "engine.died"),
    ],
)
def test_golden_text_refuses_other_answers(tmp_path: Path, answer: bytes, code: str) -> None:
    with wire(tmp_path / "s", answer):
        assert code_of(probe.golden_text, tmp_path / "s", "m", "Hello", 3) == code


def test_golden_text_refuses_when_nobody_listens(tmp_path: Path) -> None:
    assert code_of(probe.golden_text, tmp_path / "s", "m", "Hello", 3) == "engine.died"


@given(st.binary(max_size=64) | st.from_regex(rb'\{"choices":\[\{"(text|message)":.{0,16}\}\]\}', fullmatch=True))
def test_parse_answer_gives_text_or_refuses_any_bytes(body: bytes) -> None:
    with refusals("engine.protocol"):
        assert isinstance(probe.parse_answer(body), str)


def test_require_golden_accepts_one_of_the_sealed_texts() -> None:
    probe.require_golden((" no", " yes"), " yes")


@pytest.mark.parametrize("accepted", [(), (" no",), ("yes",), (" yes!",)])
def test_require_golden_refuses_any_other_text_without_quoting_it(accepted: tuple[str, ...]) -> None:
    with pytest.raises(EngineFailed) as refused:
        probe.require_golden(accepted, " yes")
    assert refused.value.code == "engine.golden"
    assert "yes" not in str(refused.value) + refused.value.hint


def test_probe_loads_neither_numpy_nor_aiohttp() -> None:
    code = "import sys; import antechamber.engine.probe, antechamber.engine.process, antechamber.engine.builtin; "
    code += "print(sorted({'numpy', 'aiohttp', 'tokenizers', 'safetensors'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
