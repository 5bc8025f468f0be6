"""What can become of a field of bytes."""

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    name: str
    at: int
    size: int

    @property
    def end(self) -> int:
        return self.at + self.size


def layout(*sizes: tuple[str, int], at: int = 0) -> list[Field]:
    """Fields one after the other."""
    fields = []
    for name, size in sizes:
        fields.append(Field(name, at, size))
        at += size
    return fields


def of_field(raw: bytes, field: Field) -> Iterator[tuple[str, bytes]]:
    """Operator and result; none is the field as it was."""
    value = raw[field.at : field.end]
    seen = {value}
    number = int.from_bytes(value, "little")
    limit = 1 << 8 * field.size
    changed = [
        *(
            (f"bit {bit} of byte {at}", flip(value, at, bit))
            for at in {0, field.size // 2, field.size - 1}
            for bit in (0, 7)
        ),
        ("zero", bytes(field.size)),
        ("ones", b"\xff" * field.size),
        ("plus one", ((number + 1) % limit).to_bytes(field.size, "little")),
        ("minus one", ((number - 1) % limit).to_bytes(field.size, "little")),
        ("reversed", value[::-1]),
    ]
    for operator, new in changed:
        if new not in seen:
            seen.add(new)
            yield operator, raw[: field.at] + new + raw[field.end :]
    yield "cut here", raw[: field.at]
    yield "without its first byte", raw[: field.at] + raw[field.at + 1 :]
    yield "after one byte more", raw[: field.at] + b"\0" + raw[field.at :]


def flip(raw: bytes, at: int, bit: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


def somewhere(raw: bytes, seed: str) -> tuple[int, bytes]:
    """One bit changed; where, only `seed` and the size decide."""
    chance = random.Random(seed)
    at = chance.randrange(len(raw))
    return at, flip(raw, at, chance.randrange(8))
