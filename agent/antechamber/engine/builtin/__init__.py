"""A small engine for demos and tests: Llama in numpy behind an OpenAI-compatible socket."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from antechamber.engine.builtin.tokens import Turn


def golden(model_dir: Path, prompt: "str | Sequence[Turn]", max_tokens: int) -> str:
    """What this engine continues `prompt` with, greedily: the text that a package seals when it is packed.

    Raises EngineFailed `engine.model`, `engine.tokenizer`, `engine.json`, `engine.chat-format`, `engine.context`.
    """
    from antechamber.engine.builtin.generate import Model  # noqa: PLC0415  # numpy, tokenizers: extra `engine`

    return Model.load(model_dir).greedy(prompt, max_tokens)
