"""What tests/attack/THREATS.md and tests/attack/guards.toml say."""

import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
THREATS = Path("tests/attack/THREATS.md")
GUARDS = Path("tests/attack/guards.toml")
SOURCE = Path("agent/antechamber")
HEADER = "| # | threat | guard | test | code |"
_ROW = re.compile(r"\| (\d+) \| (.+?) \| `([\w-]+)` \| `(.+?)` \| (.+?) \|")


class Unusable(Exception):
    """The list and the code have come apart."""


@dataclass(frozen=True, slots=True)
class Row:
    """One threat. `test` is a pytest node id below tests/; without `[...]` it stands for all parameters."""

    number: int
    threat: str
    guard: str
    test: str
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Edit:
    """`find` stands exactly once in the file; with `replace` in its place the guard is gone."""

    file: str  # below agent/antechamber
    find: str
    replace: str

    def require_once(self, text: str) -> None:
        """Raises Unusable."""
        if (times := text.count(self.find)) != 1:
            raise Unusable(f"{self.file} has {times} times, not once:\n{self.find}")


@dataclass(frozen=True, slots=True)
class Guard:
    """All edits together disable it: where a second layer would catch the attack, that layer too."""

    name: str
    edits: tuple[Edit, ...]


def load_rows(text: str) -> tuple[Row, ...]:
    """Every row of the tables. Raises Unusable for a line that only resembles one."""
    rows = []
    for line in text.splitlines():
        if re.match(r"\|\s*\d", line):
            found = _ROW.fullmatch(line)
            if found is None:
                raise Unusable(f"not a row: {line}")
            number, threat, guard, test, codes = found.groups()
            rows.append(Row(int(number), threat, guard, test, tuple(re.findall(r"`(.+?)`", codes))))
    return tuple(rows)


def renumbered(text: str) -> str:
    """The same list, its rows numbered from 1 in the order in which they stand."""
    numbers = itertools.count(1)
    return re.sub(r"^\| ?\d+ \|", lambda _: f"| {next(numbers)} |", text, flags=re.MULTILINE)


def load_guards(text: str) -> Mapping[str, Guard]:
    """Raises Unusable."""
    guards = {}
    for name, edits in tomllib.loads(text).items():
        if not isinstance(edits, list) or not all(set(e) == {"file", "find", "replace"} for e in edits):
            raise Unusable(f"{name} is not a list of edits with file, find and replace")
        guards[name] = Guard(name, tuple(Edit(**e) for e in edits))
    return guards


def by_guard(rows: Sequence[Row], guards: Mapping[str, Guard]) -> Mapping[str, tuple[Row, ...]]:
    """Rows of each guard. Raises Unusable for a row without a guard, or a guard without a row."""
    found = {name: tuple(r for r in rows if r.guard == name) for name in guards}
    if strangers := {r.guard for r in rows} - set(guards):
        raise Unusable(f"no such guard: {', '.join(sorted(strangers))}")
    if idle := [name for name, of in found.items() if not of]:
        raise Unusable(f"no threat names it: {', '.join(idle)}")
    return found


def require_in_place(guards: Mapping[str, Guard], source: Path) -> None:
    """Every edit still finds its text. Raises Unusable with all that do not: the code moved, and the list must too."""
    moved = []
    for guard in guards.values():
        for edit in guard.edits:
            try:
                edit.require_once((source / edit.file).read_text())
            except (Unusable, OSError) as e:
                moved.append(f"{guard.name}: {e}")
    if moved:
        raise Unusable("\n".join(moved))
