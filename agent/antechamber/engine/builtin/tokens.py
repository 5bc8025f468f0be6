"""Text to tokens and back: tokenizer.json, fixed chat formats, sampling, stop strings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from antechamber import strict
from antechamber.engine.builtin.weights import Architecture, Array
from antechamber.errors import EngineFailed

T = TypeVar("T")

_MAX_TOKENIZER = 64 << 20  # bytes
_GREEDY = 1e-5  # temperatures below it mean "the likeliest"
_HINT = "the built-in engine reads the tokenizers library's tokenizer.json"


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How messages become one prompt. Known by the special tokens a tokenizer has.

    A model's own chat template is a program (Jinja) that the model's author wrote: this engine never runs it.
    """

    needs: tuple[str, ...]  # special tokens
    before: tuple[str, ...]  # of each message; `{role}` is replaced
    after: tuple[str, ...]
    cue: tuple[str, ...]  # what makes the assistant speak
    end: str = ""  # special token that ends the assistant's turn, beside the model's own
    strip: bool = False  # outer white space of contents goes


_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_PLAIN = ChatFormat((), ("{role}: ",), ("\n",), ("assistant:",))
_FORMATS = (
    ChatFormat(
        needs=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        before=("<|start_header_id|>", "{role}", "<|end_header_id|>", "\n\n"),
        after=("<|eot_id|>",),
        cue=("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"),
        end="<|eot_id|>",
        strip=True,
    ),
    ChatFormat(
        needs=("<|im_start|>", "<|im_end|>"),
        before=("<|im_start|>", "{role}\n"),
        after=("<|im_end|>", "\n"),
        cue=("<|im_start|>", "assistant\n"),
        end="<|im_end|>",
    ),
    ChatFormat(needs=_ROLES, before=("<|{role}|>",), after=(), cue=("<|assistant|>",)),
)


class Turn(Protocol):
    """A message of a conversation, whoever defines it."""

    @property
    def role(self) -> str: ...  # system, user, assistant

    @property
    def content(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """A model's tokenizer. Special tokens written in a caller's text are plain text."""

    tokenizer: Tokenizer
    chat: ChatFormat | None  # None: the model has a template, in a format unknown here
    bos: int | None
    eos: frozenset[int]

    @classmethod
    def load(cls, directory: Path, arch: Architecture) -> "Tokens":
        """Raises EngineFailed `engine.tokenizer`, `engine.json`."""
        try:
            raw = (directory / "tokenizer.json").read_bytes()
            settings = directory / "tokenizer_config.json"
            templated = (directory / "chat_template.jinja").exists()
            if settings.exists():
                value = _json(settings.read_bytes())
                templated |= isinstance(value, dict) and value.get("chat_template") is not None
        except OSError as e:
            raise EngineFailed("engine.tokenizer", f"{Path(e.filename or '').name}: {e.strerror}", hint=_HINT) from e
        return cls.build(parse_tokenizer(raw), arch, templated=templated)

    @classmethod
    def build(cls, tokenizer: Tokenizer, arch: Architecture, *, templated: bool) -> "Tokens":
        highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 <= highest < arch.vocabulary:
            detail = f"token {highest} is past the model's vocabulary of {arch.vocabulary}"
            raise EngineFailed("engine.tokenizer", detail, hint=_HINT)
        specials = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
        known = next((f for f in _FORMATS if specials.issuperset(f.needs)), None)
        chat = known or (None if templated else _PLAIN)
        end = tokenizer.token_to_id(known.end) if known and known.end else None
        return cls(tokenizer, chat, arch.bos, arch.eos if end is None else arch.eos | {end})

    def prompt(self, text: str) -> list[int]:
        """A completion's prompt, with what the tokenizer itself adds (a first token, as a rule).

        Raises EngineFailed `engine.tokenizer` for a tokenizer that loads, and then has no token for something.
        """
        return list(_library(lambda: self.tokenizer.encode(text)).ids)

    def conversation(self, messages: Sequence[Turn]) -> list[int]:
        """A chat's prompt, up to where the assistant speaks.

        Raises EngineFailed `engine.chat-format`, and as `prompt` does.
        """
        if (chat := self.chat) is None:
            detail = "the model has a chat template in a format that the built-in engine does not know"
            raise EngineFailed("engine.chat-format", detail, hint="use /v1/completions, or another engine")
        ids, text = [] if self.bos is None else [self.bos], ""
        for piece, ours in _pieces(messages, chat):
            token = self.tokenizer.token_to_id(piece) if ours and piece.endswith("|>") else None
            if token is None:  # neighbouring texts are one, as a template would have them
                text += piece
            else:
                ids, text = [*ids, *self._text(text), token], ""
        return ids + self._text(text)

    def _text(self, text: str) -> list[int]:
        if not text:
            return []
        return list(_library(lambda: self.tokenizer.encode(text, add_special_tokens=False)).ids)

    def text(self, stop: tuple[str, ...] = ()) -> "Text":
        return Text(self.tokenizer, stop)


def _pieces(messages: Sequence[Turn], chat: ChatFormat) -> Iterator[tuple[str, bool]]:
    """Each piece of a conversation, and whether the format wrote it (the caller's never are special tokens)."""
    for message in messages:
        yield from ((piece.replace("{role}", message.role), True) for piece in chat.before)
        yield message.content.strip() if chat.strip else message.content, False
        yield from ((piece, True) for piece in chat.after)
    yield from ((piece, True) for piece in chat.cue)


def parse_tokenizer(raw: bytes) -> Tokenizer:
    """tokenizer.json. Raises EngineFailed `engine.tokenizer`, `engine.json`."""
    _json(raw)
    tokenizer = _library(lambda: Tokenizer.from_buffer(raw))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _library(call: Callable[[], T]) -> T:
    """A call of the tokenizers library. Raises EngineFailed `engine.tokenizer`.

    Its errors are bare Exceptions, and where its Rust code panics not even that: pyo3's PanicException.
    """
    try:
        return call()
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise EngineFailed("engine.tokenizer", f"tokenizer.json: {str(e)[:120]}", hint=_HINT) from e


def _json(raw: bytes) -> Any:
    return strict.load_json(raw, error=EngineFailed, family="engine", limit=_MAX_TOKENIZER)


class Text:
    """Tokens to text as they come; ends at a stop string, and holds back what may become one."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        self._held += _library(lambda: self._decoder.step(self._tokenizer, token)) or ""
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped, out, self._held = True, self._held[: min(found)], ""
            return out
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        at = len(self._held) - keep
        out, self._held = self._held[:at], self._held[at:]
        return out

    def finish(self) -> str:
        """What was held back, once no more comes."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None


class Sampler:
    """Chooses tokens; the same seed and logits give the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: Array) -> int:
        if self._sampling.temperature < _GREEDY:
            return int(np.argmax(logits))
        scaled = logits.astype(np.float64) / self._sampling.temperature
        chances = np.exp(scaled - np.max(scaled))
        chances /= chances.sum()
        order = np.argsort(-chances, kind="stable")
        total = np.cumsum(chances[order])
        kept = int(np.searchsorted(total, self._sampling.top_p * total[-1])) + 1  # the fewest that reach top_p
        point = self._random.random() * total[min(kept, len(total)) - 1]
        return int(order[min(int(np.searchsorted(total, point, side="right")), kept - 1, len(order) - 1)])
