"""THREATS.md, guards.toml, the tests and the code say the same."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from guards import table
from guards.table import Row

ROWS = table.load_rows((table.ROOT / table.THREATS).read_text())
GUARDS = table.load_guards((table.ROOT / table.GUARDS).read_text())

# What the list may never lose: each stands in a row of its own.
REQUIRED = (
    "replayed nonce", "stale quote", "foreign quote", "quote relayed from another guest with our GPU Evidence",
    "our quote relayed with the GPU Evidence of another guest", "debug TD", "migratable TD", "profiling TD",
    "wrong MRTD", "wrong RTMR0", "wrong RTMR1", "wrong RTMR2", "wrong MRCONFIGID",
    "event log missing", "event log truncated", "event log reordered", "event log not replaying",
    "event log with an event more", "`released` Evidence asking for a model key", "spent session", "expired session",
    "token of another broker", "TLS key not in the log asking for a certificate", "JWE for another key",
    "wrong broker certificate", "wrong broker name", "wrong broker CA",
    "collateral stale", "collateral expired", "collateral rolled back", "collateral role-confused",
    "clock behind the image's floor", "devtools GPU", "GPU of another nonce", "one GPU twice",
    "model segment flipped", "model segments swapped", "model segments truncated", "model segments reordered",
    "model segments of another package", "model segments of another version",
    "`..` in a package", "symlink in a package", "device in a package", "duplicate names in a package",
    "odd names in a package", "host-set kernel command line", "host-set credentials",
    "init-data key outside the allow-list", "nonce flood on the attestation endpoint",
    "decompression bomb: a compressed body for the engine", "decompression bomb: a compressed answer of the broker",
    "size bomb: a body for the engine", "size bomb: a body for the broker", "size bomb: an answer of the broker",
    "size bomb: an answer of a guest", "size bomb: init-data", "size bomb: a quote", "size bomb: an event log",
    "size bomb: a GPU report", "decompression bomb: a JWE", "decompression bomb: a compressed body for the broker",
    "size bomb: a KBS challenge", "size bomb: a bundle", "size bomb: a collateral envelope",
    "size bomb: a package's header", "size bomb: a policy", "size bomb: a configuration", "size bomb: a token",
    "size bomb: the devices",
    "structure bomb: JSON", "structure bomb: aliases in YAML",
    "structure bomb: depth in JSON", "structure bomb: a dotted key in init-data", "structure bomb: events",
    "engine answering wrong", "engine dying", "engine connecting out", "secrets in a core dump", "secrets in swap",
    "secrets in argv", "secrets in the environment", "secrets in the journal", "secrets on a disk",
)  # fmt: skip


def test_rows_are_numbered_without_a_gap_and_all_differ() -> None:
    assert [r.number for r in ROWS] == list(range(1, len(ROWS) + 1))
    assert len({r.threat for r in ROWS}) == len(ROWS)


def test_tables_have_the_columns_that_the_list_promises() -> None:
    text = (table.ROOT / table.THREATS).read_text()
    heads = [line for line in text.splitlines() if line.startswith("| #")]
    assert set(heads) == {table.HEADER}


@pytest.mark.parametrize("threat", REQUIRED)
def test_threat_that_must_be_named_has_its_row(threat: str) -> None:
    assert [r for r in ROWS if r.threat.startswith(threat)]


def test_every_row_names_a_guard_and_every_guard_has_a_row() -> None:
    assert table.by_guard(ROWS, GUARDS)


def test_every_guard_is_where_the_list_says_and_its_edit_changes_it() -> None:
    table.require_in_place(GUARDS, table.ROOT / table.SOURCE)
    for guard in GUARDS.values():
        for edit in guard.edits:
            assert edit.find != edit.replace, guard.name


def test_every_test_is_collected() -> None:
    listed = list(dict.fromkeys(r.test for r in ROWS))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *listed],
        cwd=table.ROOT / "tests", capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("row", ROWS, ids=lambda r: str(r.number))
def test_code_of_a_row_is_one_that_its_test_asserts(row: Row) -> None:
    """In the test itself, or in what it names of its own file; and what looks like a code of ours is in README."""
    file, _, name = row.test.partition("::")
    words = _words(_parsed(table.ROOT / "tests" / file), name.partition("[")[0])
    known = set(re.findall(r"`([a-z][a-z-]*\.[a-z0-9.<>-]+)`", (table.ROOT / "README.md").read_text()))
    assert row.codes
    for code in row.codes:
        assert any(_spells(word, code) for word in words), f"{code} is not in {row.test}"
        if re.fullmatch(r"[a-z-]+\.[a-z0-9-]+", code):
            assert code in known or code.startswith("appraisal."), code


@functools.cache
def _parsed(path: Path) -> Mapping[str, ast.stmt]:
    """Functions, classes and constants of a file, by name."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        for target in targets:
            if name := getattr(target, "id", getattr(target, "name", None)):
                found[name] = node
    return found


def _words(defined: Mapping[str, ast.stmt], name: str) -> set[str]:
    """Texts and attribute names in a definition, decorators too, and in all that it names of its file."""
    waiting, seen, words = [name], set(), set()
    while waiting:
        if (here := waiting.pop()) in seen or here not in defined:
            continue
        seen.add(here)
        for node in ast.walk(defined[here]):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                words.add(node.value if isinstance(node.value, str) else node.value.decode("latin-1"))
            elif isinstance(node, ast.JoinedStr):
                words.add("".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values))
            elif isinstance(node, ast.Attribute):
                words.add(node.attr)
            elif isinstance(node, ast.Name):
                waiting.append(node.id)
    return words


def _spells(word: str, code: str) -> bool:
    """As it stands, as a pattern, or with its number or its family filled in."""
    filled = re.sub(r"\d+$", "{}", code), re.sub(r"^[a-z-]+", "{}", code)
    return any(spelled in word for spelled in (code, code.replace(".", r"\."), *filled))


def test_list_links_to_files_that_are_there() -> None:
    place = table.ROOT / table.THREATS
    for target in re.findall(r"\]\(([^)#]+)\)", place.read_text()):
        assert (place.parent / Path(target)).exists(), target
