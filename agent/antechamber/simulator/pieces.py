"""Which parts of a simulated machine are seen through the real ABI here, and which stand in at the ports, and why."""

from collections.abc import Collection
from dataclasses import dataclass

from antechamber.simulator.capabilities import Capabilities
from antechamber.simulator.facade import MEASUREMENTS, REPORT
from antechamber.simulator.standin import PIECES, Piece

_NAMES: dict[Piece, str] = {
    "quotes": "quote device",
    "measurements": "measurement registers",
    "gpus": "GPUs",
    "host": "host facts",
}
_REAL: dict[Piece, str] = {
    "quotes": f"FUSE at {REPORT}",
    "measurements": f"FUSE at {MEASUREMENTS}",
    "gpus": "libnvidia-ml.so.1 under real pynvml",
    "host": "files mounted over /proc, /sys and /run",
}
_NEEDS: dict[Piece, tuple[str, ...]] = {
    "quotes": ("userns", "fuse"),
    "measurements": ("userns", "fuse"),
    "gpus": ("cc",),
    "host": ("userns",),
}


@dataclass(frozen=True, slots=True)
class Pieces:
    """Each piece that stands in, with the reason."""

    reasons: dict[Piece, str]

    @property
    def stand_in(self) -> tuple[Piece, ...]:
        return tuple(piece for piece in PIECES if piece in self.reasons)

    def real(self, piece: Piece) -> bool:
        return piece not in self.reasons

    def lines(self) -> list[str]:
        """One for each piece, for a reader who must not take this for a real machine."""
        told = (f"stands in ({self.reasons[p]})" if p in self.reasons else f"real ABI ({_REAL[p]})" for p in PIECES)
        return [f"{_NAMES[piece]}: {said}" for piece, said in zip(PIECES, told, strict=True)]


def choose(found: Capabilities, wanted: Collection[Piece] = ()) -> Pieces:
    """What `found` allows, less what is `wanted` to stand in."""
    reasons: dict[Piece, str] = {}
    for piece in PIECES:
        missing = [found.reasons[need] for need in _NEEDS[piece] if need in found.reasons]
        if piece in wanted:
            reasons[piece] = "asked for"
        elif missing:
            reasons[piece] = "; ".join(dict.fromkeys(missing))
    return Pieces(reasons)
