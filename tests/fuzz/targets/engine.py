"""What the built-in engine and its starter read: API requests, config.json, safetensors, tokenizer.json, options, the
golden answer. The first byte says which.
"""

import json
import math
import struct
from collections.abc import Callable

from fuzz.contract import Target
from fuzz.mutation import Mutator
from tokenizers import Tokenizer, models, pre_tokenizers

from antechamber.engine.builtin.api import ApiError, Reply, Request
from antechamber.engine.builtin.tokens import Tokens, parse_tokenizer
from antechamber.engine.builtin.weights import Architecture, Weights, parse_tensors
from antechamber.engine.catalog import ALLOWED, permitted
from antechamber.engine.options import FORBIDDEN
from antechamber.engine.probe import parse_answer

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "bos_token_id": 0,
    "eos_token_id": [1, 2], "rope_theta": 10000.0,
}  # fmt: skip
ARCHITECTURE = Architecture.parse(json.dumps(CONFIG).encode())


def _api(chat: bool) -> Callable[[bytes], None]:
    def read(raw: bytes) -> None:
        try:
            request = Request.parse(raw, chat=chat)
        except ApiError as refused:
            assert refused.status in (400, 413)
            json.loads(refused.body())
            return
        assert request.chat is chat
        assert 0 <= request.sampling.temperature <= 2
        assert 0 <= request.sampling.top_p <= 1
        reply = Reply(request, "id", 0, 1)
        assert json.loads(reply.whole("said", 1, "stop"))["model"] == request.model
        for piece in (reply.opening(), reply.delta("said", "stop"), reply.closing(1)):
            assert piece == b"" or piece.endswith(b"\n\n")

    return read


def _architecture(raw: bytes) -> None:
    arch = Architecture.parse(raw)
    assert min(arch.hidden, arch.layers, arch.heads, arch.head_dim, arch.vocabulary, arch.context) >= 1
    assert math.isfinite(arch.epsilon)
    assert math.isfinite(arch.rope.theta)
    assert arch.rope.low_freq_factor != 0


def _tensors(raw: bytes) -> None:
    tensors = dict(parse_tensors(raw))
    assert sum(t.size for t in tensors.values()) * 2 <= len(raw), "more numbers than the file has"
    Weights.assemble(ARCHITECTURE, tensors)


def _tokenizer(raw: bytes) -> None:
    tokens = Tokens.build(parse_tokenizer(raw), ARCHITECTURE, templated=False)
    ids = tokens.prompt("ab <|eot_id|> \u00e9")
    assert all(0 <= i < ARCHITECTURE.vocabulary for i in ids)
    text = tokens.text(("b",))
    for token in ids[:64]:
        text.push(token)
    text.finish()


def _golden(raw: bytes) -> None:
    assert isinstance(parse_answer(raw), str)


def _options(raw: bytes) -> None:
    kind, *options = raw.decode("utf-8", "surrogateescape").split("\0")
    if kind in ALLOWED:
        for option in permitted(kind, tuple(options)):
            assert option.partition("=")[0] not in FORBIDDEN, "a forbidden option is let through"


KINDS: tuple[Callable[[bytes], None], ...] = (
    _api(True), _api(False), _architecture, _tensors, _tokenizer, _golden, _options,
)  # fmt: skip


def run(data: bytes) -> None:
    if data:
        KINDS[data[0] % len(KINDS)](data[1:])


def _safetensors(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _small_tokenizer() -> bytes:
    vocabulary = {"a": 0, "b": 1, "<": 2, "ab": 3}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")], unk_token="<"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|eot_id|>"])
    return tokenizer.to_str().encode()


def seeds() -> list[bytes]:
    chat = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": True}
    tensor = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {"format": "pt"}}
    half = {"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    return [
        b"\0" + json.dumps(chat | {"stream_options": {"include_usage": True}, "stop": ["a"], "seed": -1}).encode(),
        b"\0"
        + json.dumps(chat | {"messages": [{"role": "system", "content": [{"type": "text", "text": "x"}]}]}).encode(),
        b"\1" + json.dumps({"model": "m", "prompt": "hello", "temperature": 0.5, "top_p": 1}).encode(),
        b"\1" + json.dumps({"model": "m", "prompt": [1, 2, 3], "n": 1, "logprobs": None}).encode(),
        b"\2" + json.dumps(CONFIG).encode(),
        b"\2" + json.dumps(CONFIG | {"rope_parameters": rope, "head_dim": 4}).encode(),
        b"\3" + _safetensors(tensor, struct.pack("<4f", 1, 2, 3, 4)),
        b"\3" + _safetensors(half, bytes(8)),
        b"\4" + _small_tokenizer(),
        b'\5{"choices":[{"text":"4"}]}',
        b'\5{"choices":[{"message":{"content":"4"}}]}',
        b"\6vllm\0--max-model-len\x004096",
        b"\6sglang\0--trust-remote-code",
        b"\6builtin",
    ]


def mutate(m: Mutator, data: bytes) -> bytes:
    kind = data[0] % len(KINDS)
    if kind == 6:
        parts = data[1:].decode("utf-8", "replace").split("\0")
        at = m.random.randrange(len(parts))
        parts[at] = m.random.choice((*FORBIDDEN, *ALLOWED["vllm"], m.text(parts[at])))
        return data[:1] + "\0".join(parts).encode("utf-8", "replace")
    if kind == 3:
        size = int.from_bytes(data[1:9], "little")
        header, body = json.loads(data[9 : 9 + size]), data[9 + size :]
        return data[:1] + _safetensors(m.json(header), m.bytes(body) if m.often(0.3) else body)
    return data[:1] + json.dumps(m.json(json.loads(data[1:])), ensure_ascii=m.often()).encode("utf-8", "replace")


WORDS = (
    "model", "messages", "prompt", "role", "content", "system", "developer", "user", "assistant", "type", "text",
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options",
    "include_usage", "n", "logprobs", "tools", "response_format", "architectures", "LlamaForCausalLM", "hidden_size",
    "rope_parameters", "rope_scaling", "rope_type", "llama3", "factor", "quantization_config", "auto_map", "dtype",
    "shape", "data_offsets", "F32", "F16", "BF16", "I64", "__metadata__", "BPE", "Unigram", "WordPiece", "WordLevel",
    "vocab", "merges", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "Sequence",
    "ByteLevel", "Regex", "pattern", "Split", "truncation", "padding", "choices", "message", "--", "=",
)  # fmt: skip
TARGET = Target(name="engine", run=run, seeds=seeds, mutate=mutate, words=WORDS, max_len=1 << 14)
