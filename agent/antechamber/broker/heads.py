"""Bytes of requests' heads in memory: a token may need a large one, and whoever has none can send one too."""

from collections import defaultdict
from dataclasses import dataclass

from aiohttp import StreamReader, web

MAX_HEAD = 1 << 20  # bytes that one connection may have sent beside its bodies: a head, and what came with it
FREE = 64 << 10  # bytes, of which each connection has its own
MAX_LARGE = 64 << 20  # bytes of all that hold more than those


@dataclass(slots=True)
class _Held:
    """What came on one connection since its last request began, and was no body's."""

    size: int = 0
    body: StreamReader | None = None


class Heads:
    """Counts, before they are parsed, the bytes that no body takes. The event loop's thread alone counts.

    What the parser holds is not told: a head is at most what came since the one before was whole.
    """

    def __init__(self) -> None:
        self._held: defaultdict[object, _Held] = defaultdict(_Held)  # by transport
        self._large = 0

    def take(self, link: object, size: int) -> bool:
        """Whether there is room for `size` bytes that came on `link`, a connection's transport."""
        held = self._held[link]
        if held.body is not None and not held.body.is_eof():
            return True  # a body's, which is counted as it is read
        self._set(held, held.size + size)
        return held.size <= MAX_HEAD and (held.size <= FREE or self._large <= MAX_LARGE)

    def begin(self, request: web.BaseRequest) -> None:
        """Its head is whole."""
        held = self._held[request.transport]
        held.body = request.content
        self._set(held, 0)

    def is_last(self, request: web.BaseRequest) -> bool:
        """Whether the connection ends with the answer: heads that are large, or sent ahead, would pile up in it."""
        head = sum(len(name) + len(value) for name, value in request.raw_headers)
        return head > FREE or self._held[request.transport].size > FREE

    def leave(self, link: object) -> None:
        self._set(self._held[link], 0)
        del self._held[link]

    def _set(self, held: _Held, size: int) -> None:
        for value, sign in ((held.size, -1), (size, 1)):
            self._large += sign * value if value > FREE else 0
        held.size = size
