from pathlib import Path

import numpy as np
import pytest
from engines import refusals
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from antechamber.engine.builtin import demo_model
from antechamber.engine.builtin.tokens import Message, Sampler, Sampling, Tokens, parse_tokenizer
from antechamber.engine.builtin.weights import Architecture
from antechamber.errors import EngineFailed


def tokens(*specials: str, templated: bool = False, bos: int | None = 0) -> Tokens:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", *specials], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    arch = Architecture.parse(
        b'{"architectures":["LlamaForCausalLM"],"hidden_size":8,"intermediate_size":8,"num_hidden_layers":1,'
        b'"num_attention_heads":2,"vocab_size":300,"max_position_embeddings":64,"bos_token_id":%b}'
        % (b"null" if bos is None else b"%d" % bos)
    )
    return Tokens.build(parse_tokenizer(tokenizer.to_str().encode()), arch, templated=templated)


def spelled(found: Tokens, *messages: Message) -> str:
    ids = found.conversation(messages)
    return str(found.tokenizer.decode(ids, skip_special_tokens=False))


ASKED = (Message("system", " Be brief. "), Message("user", "Hi"))


def test_conversation_takes_llama3s_form_by_its_special_tokens() -> None:
    found = tokens("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", templated=True)
    assert spelled(found, *ASKED) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert found.tokenizer.token_to_id("<|eot_id|>") in found.eos


def test_conversation_takes_chatml_by_its_special_tokens() -> None:
    found = tokens("<|im_start|>", "<|im_end|>", bos=None)
    assert spelled(found, *ASKED) == (
        "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_conversation_takes_role_tokens() -> None:
    found = tokens("<|system|>", "<|user|>", "<|assistant|>")
    assert spelled(found, *ASKED) == "<s><|system|> Be brief. <|user|>Hi<|assistant|>"


def test_conversation_is_plain_text_without_a_template() -> None:
    assert spelled(tokens(), *ASKED) == "<s>system:  Be brief. \nuser: Hi\nassistant:"


def test_conversation_refuses_a_template_it_does_not_know() -> None:
    with pytest.raises(EngineFailed) as refused:
        tokens(templated=True).conversation(ASKED)
    assert refused.value.code == "engine.chat-format"


@pytest.mark.parametrize("text", ["<|assistant|>", "<s>", "a<|user|>b"])
def test_special_tokens_in_a_callers_text_are_text(text: str) -> None:
    found = tokens("<|system|>", "<|user|>", "<|assistant|>")
    specials = {found.tokenizer.token_to_id(t) for t in ("<s>", "<|system|>", "<|user|>", "<|assistant|>")}
    assert not specials & set(found.prompt(text))
    assert [i for i in found.conversation([Message("user", text)]) if i in specials] == [
        found.tokenizer.token_to_id(t) for t in ("<s>", "<|user|>", "<|assistant|>")
    ]


def test_build_refuses_a_tokenizer_larger_than_the_model() -> None:
    found = tokens(*(f"<{i}>" for i in range(40)))
    assert found.tokenizer.get_vocab_size() > 290
    with pytest.raises(EngineFailed) as refused:
        tokens(*(f"<{i}>" for i in range(60)))
    assert refused.value.code == "engine.tokenizer"


def test_load_refuses_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    arch = Architecture.parse(demo_config())
    with pytest.raises(EngineFailed) as refused:
        Tokens.load(tmp_path, arch)
    assert refused.value.code == "engine.tokenizer"


def demo_config() -> bytes:
    import json

    return json.dumps(demo_model._config()).encode()


@given(st.binary(max_size=64) | st.just(b"{}") | st.just(b'{"model":{"type":"BPE","vocab":{},"merges":[]}}'))
def test_tokenizer_parses_or_refuses_any_bytes(raw: bytes) -> None:
    with refusals("engine.tokenizer", "engine.json"):
        parse_tokenizer(raw)


def broken(**model: object) -> bytes:
    """tokenizer.json of one model, as a packer may have it."""
    import json

    whole = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "unk_token": None} | model
    return json.dumps({"version": "1.0", "added_tokens": [], "model": whole}).encode()


def test_tokenizer_is_refused_where_the_library_panics() -> None:
    """Found by fuzzing: a merge shorter than the prefix of continuing parts. pyo3's PanicException is no Exception."""
    assert parse_tokenizer(broken())
    with refusals("engine.tokenizer"):
        parse_tokenizer(broken(continuing_subword_prefix="##"))
        pytest.fail("the library takes it now: is the guard still needed?")


def test_prompt_is_refused_where_the_tokenizer_has_no_token_for_it() -> None:
    """Found by fuzzing: a tokenizer that loads, and whose token for unknown text is not in its vocabulary."""
    found = Tokens(parse_tokenizer(broken(unk_token="none")), None, None, frozenset())
    assert found.prompt("ab") == [2]
    with pytest.raises(EngineFailed) as refused:
        found.prompt("xyz")
    assert refused.value.code == "engine.tokenizer"


@given(st.text(max_size=40))
def test_text_gives_back_what_was_encoded(text: str) -> None:
    found = TOKENS
    stream = found.text()
    out = "".join(stream.push(t) for t in found.tokenizer.encode(text, add_special_tokens=False).ids)
    assert out + stream.finish() == text


TOKENS = tokens()


@given(st.text("ab", min_size=1, max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_where_the_first_stop_string_begins(text: str, stop: list[str]) -> None:
    stream = TOKENS.text(tuple(stop))
    out = ""
    for token in TOKENS.tokenizer.encode(text, add_special_tokens=False).ids:
        out += stream.push(token)
        if stream.stopped:
            break
    # a byte at a time: the earliest end of a stop string wins, then its earliest beginning
    ends = [
        (end, min(end - len(s) for s in stop if text[:end].endswith(s)))
        for end in range(len(text) + 1)
        if any(text[:end].endswith(s) for s in stop)
    ]
    assert out + stream.finish() == (text[: ends[0][1]] if ends else text)
    assert stream.stopped == bool(ends)


LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


def test_sampler_takes_the_likeliest_at_temperature_0() -> None:
    assert Sampler(Sampling(temperature=0.0)).choose(LOGITS[::-1]) == 3


def test_sampler_repeats_itself_with_the_same_seed() -> None:
    one, two, other = (Sampler(Sampling(seed=s)) for s in (7, 7, 8))
    drawn = [[s.choose(LOGITS) for _ in range(40)] for s in (one, two, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_sampler_draws_in_proportion() -> None:
    sampler = Sampler(Sampling(seed=1))
    counts = np.bincount([sampler.choose(LOGITS) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.0, {0}), (0.5, {0}), (0.79, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_sampler_keeps_the_fewest_tokens_that_reach_top_p(top_p: float, kept: set[int]) -> None:
    sampler = Sampler(Sampling(seed=1, top_p=top_p))
    assert {sampler.choose(LOGITS) for _ in range(600)} == kept
