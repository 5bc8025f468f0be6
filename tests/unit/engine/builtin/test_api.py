import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antechamber.engine.builtin.api import MAX_BODY, ApiError, Reply, Request
from antechamber.engine.builtin.tokens import Message, Sampling

USER = {"role": "user", "content": "Hi"}


def chat(**changes: Any) -> Request:
    return Request.parse(json.dumps({"model": "m", "messages": [USER]} | changes).encode(), chat=True)


def completion(**changes: Any) -> Request:
    return Request.parse(json.dumps({"model": "m", "prompt": "Hi"} | changes).encode(), chat=False)


def test_chat_fills_in_openais_defaults() -> None:
    assert chat() == Request("m", (Message("user", "Hi"),), True, None, Sampling(1.0, 1.0, None), (), False, False)


def test_completion_defaults_to_16_tokens() -> None:
    assert completion().max_tokens == 16


def test_chat_prefers_max_completion_tokens() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert chat(max_tokens=5).max_tokens == 5


def test_chat_joins_text_parts_and_maps_developer_to_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(messages=[{"role": "developer", "content": parts}, USER])
    assert request.prompt == (Message("system", "ab"), Message("user", "Hi"))


def test_completion_takes_one_string_or_one_list_of_tokens() -> None:
    assert completion(prompt=["Hi"]).prompt == "Hi"
    assert completion(prompt=[1, 2]).prompt == completion(prompt=[[1, 2]]).prompt == (1, 2)


def test_stop_takes_a_string_or_a_list() -> None:
    assert chat(stop="x").stop == ("x",)
    assert chat(stop=["x", "yy"]).stop == ("x", "yy")


def test_include_usage_needs_a_stream() -> None:
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage
    assert not chat(stream_options={"include_usage": True}).include_usage


def test_unknown_and_neutral_parameters_change_nothing() -> None:
    neutral = {"n": 1, "logprobs": False, "tools": [], "response_format": {"type": "text"}, "presence_penalty": 0.0}
    assert chat(user="u", metadata={}, **neutral) == chat()


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"seed": 0.5}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": 1}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "stream_options": 1}, "stream_options"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None),  # no JSON of ours
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
    ],
)
def test_chat_refuses_what_it_would_answer_wrongly(changes: dict[str, Any], param: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        chat(**changes)
    assert (refused.value.status, refused.value.param) == (400, param)
    error = json.loads(refused.value.body())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", [None, [], ["a", "b"], [1, "a"], [True], {"a": 1}, 7])
def test_completion_refuses_other_prompts(prompt: object) -> None:
    with pytest.raises(ApiError) as refused:
        completion(prompt=prompt)
    assert (refused.value.status, refused.value.param) == (400, "prompt")


def test_request_refuses_a_body_that_is_too_long() -> None:
    with pytest.raises(ApiError) as refused:
        Request.parse(b" " * (MAX_BODY + 1), chat=True)
    assert refused.value.status == 413


KEYS = ["model", "messages", "prompt", "n", "stop", "seed", "stream", "stream_options", "temperature", "max_tokens"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type"]), inner),
    max_leaves=6,
)


@given(st.binary(max_size=64) | st.dictionaries(st.sampled_from(KEYS), JSON), st.booleans())
def test_request_parses_or_refuses_any_body(value: bytes | dict[str, Any], chat: bool) -> None:
    base = {"model": "m", "messages": [USER], "prompt": "Hi"}
    raw = value if isinstance(value, bytes) else json.dumps(base | value).encode()
    with suppress(ApiError):
        Request.parse(raw, chat=chat)


def test_reply_is_valid_json_for_any_text() -> None:
    reply = Reply(chat(), "chatcmpl-1", 0, 3)
    body = json.loads(reply.whole('"\n\udcff€', 2, "stop"))
    assert body["choices"][0]["message"]["content"] == '"\n?€'
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
