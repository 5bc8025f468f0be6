"""Llama checkpoints: config.json to an architecture, safetensors to float32 arrays."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors
from numpy.typing import NDArray

from antechamber import strict
from antechamber.errors import EngineFailed

Array = NDArray[np.float32]

_MAX_CONFIG = 1 << 20  # bytes
_MAX_INDEX = 16 << 20
_HINT = "the built-in engine serves LlamaForCausalLM in safetensors only; choose another engine for this model"
_IGNORED = ".rotary_emb.inv_freq"  # buffers that old checkpoints carry; computed from config.json here


def refuse(detail: str) -> NoReturn:
    raise EngineFailed("engine.model", detail, hint=_HINT)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions; `factor` 1 is the plain form, else Llama 3's. Source: transformers, modeling_rope_utils.py."""

    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True)
class Architecture:
    """What config.json says of a LlamaForCausalLM."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int  # tokens
    epsilon: float
    rope: Rope
    tied: bool
    bos: int | None
    eos: frozenset[int]

    @classmethod
    def parse(cls, raw: bytes) -> "Architecture":
        """config.json. Raises EngineFailed `engine.model`, `engine.json`."""
        value = strict.load_json(raw, error=EngineFailed, family="engine", limit=_MAX_CONFIG)
        if not isinstance(value, dict):
            refuse("config.json is not an object")
        _require_llama(value)
        hidden, heads = _count(value, "hidden_size"), _count(value, "num_attention_heads")
        kv_heads = _count(value, "num_key_value_heads", heads)
        head_dim = _count(value, "head_dim", max(hidden // heads, 1))
        if heads % kv_heads or head_dim % 2:
            refuse(f"{heads} heads over {kv_heads} KV heads of {head_dim} dimensions")
        return cls(
            hidden=hidden,
            intermediate=_count(value, "intermediate_size"),
            layers=_count(value, "num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary=_count(value, "vocab_size"),
            context=_count(value, "max_position_embeddings"),
            epsilon=_real(value, "rms_norm_eps", 1e-6),
            rope=_rope(value),
            tied=_flag(value, "tie_word_embeddings"),
            bos=next(iter(sorted(_ids(value, "bos_token_id"))), None),
            eos=_ids(value, "eos_token_id"),
        )


def _require_llama(value: Mapping[str, Any]) -> None:
    if value.get("architectures") != ["LlamaForCausalLM"] or value.get("model_type", "llama") != "llama":
        refuse(f"architecture {value.get('architectures')!r:.80}, type {value.get('model_type')!r:.40}")
    for key in ("auto_map", "quantization_config"):
        if value.get(key) is not None:
            refuse(f"config.json has {key}")
    if value.get("hidden_act", "silu") != "silu":
        refuse(f"hidden_act is {value['hidden_act']!r:.40}, not 'silu'")
    for key in ("attention_bias", "mlp_bias"):
        if _flag(value, key):
            refuse(f"config.json has {key}")


def _count(value: Mapping[str, Any], key: str, default: int | None = None) -> int:
    seen = value.get(key)
    seen = default if seen is None else seen
    if not isinstance(seen, int) or isinstance(seen, bool) or not 1 <= seen <= 1 << 24:
        refuse(f"{key} is {seen!r:.40}")
    return seen


def _real(value: Mapping[str, Any], key: str, default: float | None = None) -> float:
    seen = value.get(key, default)
    if not isinstance(seen, int | float) or isinstance(seen, bool) or not 0 < seen < 1e12:
        refuse(f"{key} is {seen!r:.40}")
    return float(seen)


def _flag(value: Mapping[str, Any], key: str) -> bool:
    seen = value.get(key, False)
    if not isinstance(seen, bool):
        refuse(f"{key} is {seen!r:.40}")
    return seen


def _ids(value: Mapping[str, Any], key: str) -> frozenset[int]:
    seen = value.get(key)
    listed = [] if seen is None else seen if isinstance(seen, list) else [seen]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 24 for i in listed):
        refuse(f"{key} is {seen!r:.40}")
    return frozenset(listed)


def _rope(value: Mapping[str, Any]) -> Rope:
    """`rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before)."""
    scaling = value.get("rope_parameters") or value.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        refuse(f"rope scaling is {scaling!r:.40}")
    theta = _real({"rope_theta": value.get("rope_theta", 10000.0)} | scaling, "rope_theta")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return Rope(theta)
    if kind != "llama3":
        refuse(f"rope scaling {kind!r:.40} is neither 'default' nor 'llama3'")
    rope = Rope(
        theta,
        factor=_real(scaling, "factor"),
        low_freq_factor=_real(scaling, "low_freq_factor"),
        high_freq_factor=_real(scaling, "high_freq_factor"),
        original_context=_count(scaling, "original_max_position_embeddings"),
    )
    if rope.low_freq_factor >= rope.high_freq_factor:
        refuse(f"low_freq_factor {rope.low_freq_factor} is not below high_freq_factor {rope.high_freq_factor}")
    return rope


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer; matrices as stored, (out, in)."""

    input_norm: Array
    query: Array
    key: Array
    value: Array
    output: Array
    post_norm: Array
    gate: Array
    up: Array
    down: Array


_LAYER = {
    "input_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "post_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class Weights:
    embedding: Array  # (vocabulary, hidden)
    layers: tuple[Layer, ...]
    norm: Array
    head: Array  # (vocabulary, hidden); the embedding itself where tied

    @classmethod
    def assemble(cls, arch: Architecture, tensors: Mapping[str, Array]) -> "Weights":
        """Every tensor named, shaped as the architecture says, none left over. Raises EngineFailed `engine.model`."""
        left = {name: t for name, t in tensors.items() if not name.endswith(_IGNORED)}
        if arch.tied:  # a head beside tied embeddings is what transformers ignores too
            left.pop("lm_head.weight", None)

        def take(name: str, *shape: int) -> Array:
            tensor = left.pop(f"{name}.weight", None)
            if tensor is None or tensor.shape != shape:
                refuse(f"{name}.weight is {'missing' if tensor is None else tensor.shape}, not {shape}")
            return tensor

        embedding = take("model.embed_tokens", arch.vocabulary, arch.hidden)
        shapes = _layer_shapes(arch)
        layers = tuple(
            Layer(**{f.name: take(f"model.layers.{i}.{_LAYER[f.name]}", *shapes[f.name]) for f in fields(Layer)})
            for i in range(arch.layers)
        )
        norm = take("model.norm", arch.hidden)
        head = embedding if arch.tied else take("lm_head", arch.vocabulary, arch.hidden)
        if left:
            refuse(f"{len(left)} tensors that no Llama has, {min(left)!r:.80} among them")
        return cls(embedding, layers, norm, head)


def _layer_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    return {
        "input_norm": (arch.hidden,),
        "query": (queries, arch.hidden),
        "key": (keys, arch.hidden),
        "value": (keys, arch.hidden),
        "output": (arch.hidden, queries),
        "post_norm": (arch.hidden,),
        "gate": (arch.intermediate, arch.hidden),
        "up": (arch.intermediate, arch.hidden),
        "down": (arch.hidden, arch.intermediate),
    }


def parse_tensors(raw: bytes) -> Iterator[tuple[str, Array]]:
    """Tensors of one safetensors file as float32. Raises EngineFailed `engine.model`."""
    try:
        entries = safetensors.deserialize(raw)  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError) as e:
        raise EngineFailed("engine.model", f"not safetensors: {str(e)[:120]}", hint=_HINT) from e
    for name, entry in entries:
        yield name, _widen(name, entry["dtype"], entry["data"]).reshape(entry["shape"])


def _widen(name: str, dtype: str, data: bytes) -> Array:
    if dtype == "F32":
        return np.frombuffer(data, "<f4")
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    refuse(f"{name!r:.80} is {dtype!r:.20}, not F32, F16 or BF16")


def load(directory: Path) -> tuple[Architecture, Weights]:
    """Architecture and weights of a model directory. Raises EngineFailed `engine.model`, `engine.json`."""
    try:
        arch = Architecture.parse((directory / "config.json").read_bytes())
        tensors: dict[str, Array] = {}
        for name in _shards(directory):
            tensors.update(parse_tensors((directory / name).read_bytes()))
    except OSError as e:
        raise EngineFailed("engine.model", f"{Path(e.filename or '').name}: {e.strerror}", hint=_HINT) from e
    return arch, Weights.assemble(arch, tensors)


def _shards(directory: Path) -> list[str]:
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return ["model.safetensors"]
    value = strict.load_json(index.read_bytes(), error=EngineFailed, family="engine", limit=_MAX_INDEX)
    named = value.get("weight_map") if isinstance(value, dict) else None
    names = sorted({str(n) for n in named.values()}) if isinstance(named, dict) else []
    if not names or any(Path(n).name != n or not n.endswith(".safetensors") for n in names):
        refuse("model.safetensors.index.json does not list files beside it")
    return names
