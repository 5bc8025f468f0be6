"""Llama's forward pass in numpy: float32, one sequence, a cache of keys and values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from antechamber.engine.builtin import weights
from antechamber.engine.builtin.weights import Architecture, Array, Layer, Rope, Weights

_CHUNK = 256  # tokens: bounds the score matrix of a long prompt, and how late a cancellation is seen


@dataclass(slots=True)
class Cache:
    """Keys and values of the tokens seen so far: (layers, KV heads, capacity, head dimension)."""

    keys: Array
    values: Array
    length: int = 0

    @classmethod
    def empty(cls, arch: Architecture, capacity: int) -> "Cache":
        shape = (arch.layers, arch.kv_heads, capacity, arch.head_dim)
        return cls(np.zeros(shape, np.float32), np.zeros(shape, np.float32))


@dataclass(frozen=True, slots=True)
class Llama:
    """A loaded model. Threads may share it: only the cache changes."""

    arch: Architecture
    weights: Weights
    frequencies: Array = field(repr=False)  # (head dimension / 2,)

    @classmethod
    def load(cls, directory: Path) -> "Llama":
        """Raises EngineFailed `engine.model`, `engine.json`."""
        return cls.build(*weights.load(directory))

    @classmethod
    def build(cls, arch: Architecture, loaded: Weights) -> "Llama":
        return cls(arch, loaded, inverse_frequencies(arch.rope, arch.head_dim))

    def cache(self, capacity: int) -> Cache:
        return Cache.empty(self.arch, capacity)

    def hidden(self, tokens: Sequence[int], cache: Cache) -> Array:
        """Normalised last hidden states of `tokens`, which follow those in `cache`: (tokens, hidden)."""
        start, end = cache.length, cache.length + len(tokens)
        angles = np.arange(start, end, dtype=np.float32)[:, None] * self.frequencies
        turn = np.cos(angles), np.sin(angles)
        x = self.weights.embedding[np.asarray(tokens)]
        for index, layer in enumerate(self.weights.layers):
            keys, values = cache.keys[index, :, :end], cache.values[index, :, :end]
            x = x + self._attend(layer, _norm(x, layer.input_norm, self.arch.epsilon), keys, values, turn)
            x = x + _feed(layer, _norm(x, layer.post_norm, self.arch.epsilon))
        cache.length = end
        return _norm(x, self.weights.norm, self.arch.epsilon)

    def prefill(self, tokens: Sequence[int], cache: Cache) -> Iterator[Array]:
        """Run a prompt chunk by chunk: the hidden states of each."""
        for at in range(0, len(tokens), _CHUNK):
            yield self.hidden(tokens[at : at + _CHUNK], cache)

    def logits(self, hidden: Array) -> Array:
        return hidden @ self.weights.head.T

    def _attend(self, layer: Layer, x: Array, keys: Array, values: Array, turn: tuple[Array, Array]) -> Array:
        """Grouped-query attention; writes the new keys and values at the end of those given."""
        arch, count = self.arch, len(x)
        start = keys.shape[1] - count
        query = _rotate((x @ layer.query.T).reshape(count, arch.heads, arch.head_dim), turn)
        keys[:, start:] = _rotate((x @ layer.key.T).reshape(count, arch.kv_heads, -1), turn).transpose(1, 0, 2)
        values[:, start:] = (x @ layer.value.T).reshape(count, arch.kv_heads, -1).transpose(1, 0, 2)
        grouped = query.reshape(count, arch.kv_heads, -1, arch.head_dim).transpose(1, 2, 0, 3)
        scores: Array = np.matmul(grouped, keys[:, None].swapaxes(-1, -2))
        np.multiply(scores, np.float32(arch.head_dim**-0.5), out=scores)
        if count > 1:  # a token sees itself and what came before
            scores += np.triu(np.full((count, keys.shape[1]), -np.inf, np.float32), start + 1)
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        mixed = (scores @ values[:, None]).transpose(2, 0, 1, 3)
        out: Array = np.matmul(mixed.reshape(count, -1), layer.output.T)
        return out


def _norm(x: Array, weight: Array, epsilon: float) -> Array:
    scale: Array = np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(epsilon))
    return x / scale * weight


def _feed(layer: Layer, x: Array) -> Array:
    """SwiGLU."""
    gate = x @ layer.gate.T
    gate /= 1 + np.exp(-np.maximum(gate, -80))  # below -80 silu is 0, and exp would overflow
    return (gate * (x @ layer.up.T)) @ layer.down.T


def _rotate(x: Array, turn: tuple[Array, Array]) -> Array:
    """Turn (tokens, heads, dimension) by position: the first half pairs with the second, as in transformers."""
    cos, sin = turn[0][:, None], turn[1][:, None]
    left, right = np.split(x, 2, axis=-1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def inverse_frequencies(rope: Rope, head_dim: int) -> Array:
    """Radians per position. Source: transformers, modeling_rope_utils.py, `_compute_llama3_parameters`."""
    plain = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    if rope.factor == 1.0:
        return plain.astype(np.float32)
    turns = rope.original_context * plain / (2 * np.pi)  # over the context it was trained for
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(smooth, 0, 1)
    scaled: Array = (kept * plain + (1 - kept) * plain / rope.factor).astype(np.float32)
    return scaled
