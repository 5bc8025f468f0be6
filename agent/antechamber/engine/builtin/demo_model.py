"""A tiny Llama that answers a few questions: real weights, made offline in a second, about 1 MB.

The transformer is random and fixed by its seed. Only the output matrix is trained, in closed form: ridge regression
from the hidden states that each answer's tokens see to the token that comes next. Other prompts give babble.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from antechamber.engine.builtin.llama import Llama
from antechamber.engine.builtin.tokens import Message, Tokens
from antechamber.engine.builtin.weights import Architecture, Weights

_ANSWERS = {
    "What is Antechamber?": (
        "Antechamber is the room before the chamber: it proves this machine, earns the keys, unlocks the model and "
        "only then starts the engine that answers you."
    ),
    "Where do you run?": "In a confidential virtual machine: Intel TDX guards my memory, and the GPU runs in CC mode.",
    "Who can read this?": (
        "You and this guest. TLS ends inside the enclave, and neither the host nor its operator can read along."
    ),
    "How do I know?": "Do not trust me. Run antechamber verify, and see the quote, the measurements and the policy.",
    "What are you?": "A tiny Llama of random weights, with an output layer fitted to a few answers.",
    "Hello": "Hello from inside the enclave.",
}
DEMO_QUESTIONS = list(_ANSWERS)
GOLDEN_PROMPT = DEMO_QUESTIONS[0]
GOLDEN_TOKENS = 24

_SPECIALS = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
_BOS, _EOS = 1, 2
_HIDDEN, _INTERMEDIATE, _LAYERS, _HEADS, _KV_HEADS, _VOCABULARY = 256, 64, 2, 8, 2, 512
_CONTEXT = 512  # tokens
_MIX = 2.0  # how much more the layers say than the token itself: contexts must differ, and each matrix matter
_RIDGE = 1e-2
_CONFIDENCE = 32.0  # logit of the right token: other BLAS, precisions and a temperature of 1 answer the same
_SYSTEM = "You are a helpful assistant."  # what many clients send first

Half = NDArray[np.float16]


def make(directory: Path, *, seed: int = 0) -> None:
    """Write config.json, tokenizer.json, tokenizer_config.json, model.safetensors; the same seed, the same model."""
    directory.mkdir(parents=True, exist_ok=True)
    config = json.dumps(_config(), indent=2) + "\n"
    arch = Architecture.parse(config.encode())
    tokens = Tokens.build(_tokenizer(), arch, templated=False)
    tensors = _random(arch, np.random.default_rng(seed))
    tensors["lm_head.weight"] = _solve(arch, tensors, _lessons(tokens))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "np"})
    (directory / "config.json").write_text(config)
    (directory / "tokenizer.json").write_text(tokens.tokenizer.to_str())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _VOCABULARY,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HIDDEN // _HEADS,
        "max_position_embeddings": _CONTEXT,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": _BOS,
        "eos_token_id": _EOS,
        "torch_dtype": "float16",
    }


def _tokenizer() -> Tokenizer:
    """Byte-level BPE over the demo's own texts: any text encodes, and these in few tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=_SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for pair in _ANSWERS.items() for text in pair], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", _BOS)])
    tokenizer.encode_special_tokens = True
    return tokenizer


def _random(arch: Architecture, random: np.random.Generator) -> dict[str, Half]:
    """Every tensor, the output matrix still zero."""

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Half:
        drawn: Half = (random.standard_normal((rows, columns)) * scale / columns**0.5).astype(np.float16)
        return drawn

    ones = np.ones(arch.hidden, np.float16)
    queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    tensors = {"model.embed_tokens.weight": matrix(arch.vocabulary, arch.hidden, arch.hidden**0.5)}
    for at in (f"model.layers.{i}" for i in range(arch.layers)):
        tensors |= {
            f"{at}.input_layernorm.weight": ones,
            f"{at}.self_attn.q_proj.weight": matrix(queries, arch.hidden),
            f"{at}.self_attn.k_proj.weight": matrix(keys, arch.hidden),
            f"{at}.self_attn.v_proj.weight": matrix(keys, arch.hidden, _MIX),
            f"{at}.self_attn.o_proj.weight": matrix(arch.hidden, queries, _MIX),
            f"{at}.post_attention_layernorm.weight": ones,
            f"{at}.mlp.gate_proj.weight": matrix(arch.intermediate, arch.hidden),
            f"{at}.mlp.up_proj.weight": matrix(arch.intermediate, arch.hidden),
            f"{at}.mlp.down_proj.weight": matrix(arch.hidden, arch.intermediate, _MIX),
        }
    return tensors | {"model.norm.weight": ones, "lm_head.weight": np.zeros((arch.vocabulary, arch.hidden), np.float16)}


def _lessons(tokens: Tokens) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts and their continuations: as a chat, with and without a system message, and as a plain completion."""
    for question, answer in _ANSWERS.items():
        asked = Message("user", question)
        said = [*tokens.tokenizer.encode(answer, add_special_tokens=False).ids, _EOS]
        yield tokens.conversation([asked]), said
        yield tokens.conversation([Message("system", _SYSTEM), asked]), said
        yield tokens.prompt(question), [*tokens.tokenizer.encode(" " + answer, add_special_tokens=False).ids, _EOS]


def _solve(arch: Architecture, tensors: dict[str, Half], lessons: Iterable[tuple[list[int], list[int]]]) -> Half:
    """The output matrix: ridge regression from hidden states to the next token, one of `vocabulary`."""
    llama = Llama.build(arch, Weights.assemble(arch, {k: v.astype(np.float32) for k, v in tensors.items()}))
    seen, wanted = [], []
    for prompt, answer in lessons:
        line = prompt + answer[:-1]
        seen.append(llama.hidden(line, llama.cache(len(line)))[len(prompt) - 1 :])
        wanted += answer
    states = np.concatenate(seen).astype(np.float64)
    targets = _CONFIDENCE * np.eye(arch.vocabulary)[wanted]
    square = states.T @ states + _RIDGE * np.eye(arch.hidden)
    return np.linalg.solve(square, states.T @ targets).T.astype(np.float16, order="C")  # safetensors writes raw buffers
