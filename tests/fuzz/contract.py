"""What holds for every input of every parser: it is read, or refused with a code; nothing else, and never slowly.

`Target.run` gives an input to one parser and to what the program does next with its result. It may raise an AgentError.
Anything else is a finding: another exception, a broken round trip (an AssertionError), more than TIMEOUT_S seconds or
RSS_MB of memory.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzz.mutation import Mutator

    from antechamber.errors import AgentError

CORPUS = Path(__file__).parent / "corpus"
VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors"
TIMEOUT_S = 5
RSS_MB = 1024
MAX_SAID = 4096  # characters of a refusal: a console line, an audit record and an HTTP answer carry it
NOW = 1_790_000_000  # the time of all corpora: their certificates and tokens stay valid
_CODE = re.compile(r"[a-z][a-z-]*(\.[a-z0-9]+(-[a-z0-9]+)*){1,2}")


def _nothing() -> Sequence[bytes]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One parser under test. `seeds` are valid inputs, and near misses, that the simulator makes."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    mutate: "Callable[[Mutator, bytes], bytes]"
    words: tuple[str, ...] = ()  # for libFuzzer's dictionary
    max_len: int = 1 << 16  # bytes
    vectors: Callable[[], Sequence[bytes]] = _nothing  # real inputs beside the checkout; never copied into it


def outcome(target: Target, data: bytes) -> str:
    """The refusal's code, or "" for an input that is read. Raises whatever breaks the contract."""
    from antechamber.errors import AgentError  # not before it is instrumented

    try:
        target.run(data)
    except AgentError as refused:
        require_sayable(refused)
        return refused.code
    return ""


def require_sayable(refused: "AgentError") -> None:
    """A refusal goes to a log, a console, a database and a peer: it must fit there, and be text."""
    assert _CODE.fullmatch(refused.code), f"{refused.code!r} is no code"
    for said in (refused.detail, refused.hint):
        assert isinstance(said, str), f"{refused.code} says {type(said).__name__}"
        assert len(said) <= MAX_SAID, f"{refused.code} says {len(said)} characters"
        said.encode()  # half a surrogate pair would break whatever writes it


def file_name(data: bytes) -> str:
    """Of an input in a corpus."""
    return hashlib.sha256(data).hexdigest()[:32]


def kept(target: Target) -> list[Path]:
    """The committed corpus."""
    return sorted(path for path in (CORPUS / target.name).glob("*") if path.is_file())
