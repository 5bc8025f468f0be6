"""Key bytes with an owner."""

from typing import NoReturn, SupportsIndex


class Secret:
    """Owns key bytes: `with secret as key:` lends them once, then zeroes them.

    Best effort: copies a library makes as `bytes` stay until freed (pyca: Limitations).
    """

    __slots__ = ("_buf", "_spent")

    def __init__(self, buf: bytearray) -> None:
        self._buf, self._spent = buf, False  # taken over, not copied

    def __enter__(self) -> memoryview:
        if self._spent:
            raise RuntimeError("this Secret is already spent")
        return memoryview(self._buf).toreadonly()

    def __exit__(self, *_: object) -> None:
        self.destroy()

    def destroy(self) -> None:
        """Zero the bytes, lent or not."""
        self._buf[:], self._spent = bytes(len(self._buf)), True

    def __len__(self) -> int:
        return len(self._buf)

    def __repr__(self) -> str:
        return f"<Secret, {len(self._buf)} bytes>"

    def __reduce_ex__(self, _: SupportsIndex) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied")
