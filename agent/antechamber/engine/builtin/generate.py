"""One continuation, piece by piece."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from antechamber.engine.builtin.llama import Llama
from antechamber.engine.builtin.tokens import Sampler, Sampling, Tokens, Turn
from antechamber.errors import EngineFailed

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Job:
    """What to continue, and how."""

    prompt: tuple[int, ...]  # at least one token
    max_tokens: int  # at least one; prompt and these fit the context
    sampling: Sampling
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    tokens: int  # generated so far, the end token included
    finish: Finish | None = None  # set on the last piece


@dataclass(frozen=True, slots=True)
class Model:
    """Weights and tokenizer of one directory."""

    llama: Llama
    tokens: Tokens

    @classmethod
    def load(cls, directory: Path) -> "Model":
        """Raises EngineFailed `engine.model`, `engine.tokenizer`, `engine.json`."""
        llama = Llama.load(directory)
        return cls(llama, Tokens.load(directory, llama.arch))

    @property
    def context(self) -> int:
        """Tokens that a prompt and its continuation may have together."""
        return self.llama.arch.context

    def generate(self, job: Job, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Piece]:
        """Pieces of the continuation; ends early, without a last piece, once `cancelled()`."""
        cache = self.llama.cache(len(job.prompt) + job.max_tokens)
        sampler, text = Sampler(job.sampling), self.tokens.text(job.stop)
        for hidden in self.llama.prefill(job.prompt, cache):
            last = hidden[-1]
            if cancelled():
                return
        for count in range(1, job.max_tokens + 1):
            token = sampler.choose(self.llama.logits(last))
            if token in self.tokens.eos:
                yield Piece(text.finish(), count, "stop")
                return
            out = text.push(token)
            if text.stopped:
                yield Piece(out, count, "stop")
                return
            if count == job.max_tokens:
                yield Piece(out + text.finish(), count, "length")
                return
            yield Piece(out, count)
            if cancelled():
                return
            last = self.llama.hidden((token,), cache)[-1]

    def greedy(self, prompt: str | Sequence[Turn], max_tokens: int) -> str:
        """Raises EngineFailed `engine.chat-format`, `engine.context`."""
        ids = self.tokens.prompt(prompt) if isinstance(prompt, str) else self.tokens.conversation(prompt)
        if not ids or len(ids) + max_tokens > self.context:
            detail = f"{len(ids)} tokens and {max_tokens} more, the context is {self.context}"
            raise EngineFailed("engine.context", detail, hint="shorten the prompt, but not to nothing")
        job = Job(tuple(ids), max_tokens, Sampling(temperature=0.0))
        return "".join(piece.text for piece in self.generate(job))
