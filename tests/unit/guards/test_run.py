"""The runner itself: what survives is reported, what moved is refused."""

import json
from pathlib import Path

import pytest
from guards import run, table
from guards.table import Edit, Guard, Row, Unusable

REAL = 'if value.get("quote_sha256") != digest:'
FILE = "gateway/agent_link.py"
TEST = "attack/test_gateway_attestation.py::test_quote_under_anothers_digest_serves_nobody"


def planted(root: Path, guards: dict[str, list[dict[str, str]]], rows: list[tuple[str, str]]) -> Path:
    """A list of its own, over this tree's code."""
    (root / "tests" / "attack").mkdir(parents=True)
    (root / "agent").symlink_to(table.ROOT / "agent")
    lines = [f"| {n} | threat {n} | `{guard}` | `{test}` | `x.y` |" for n, (guard, test) in enumerate(rows, 1)]
    (root / table.THREATS).write_text("\n".join([table.HEADER, *lines]))
    text = "".join(
        f"[[{name}]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in edit.items())
        for name, edits in guards.items()
        for edit in edits
    )
    (root / table.GUARDS).write_text(text)
    return root


def edit(find: str = REAL, replace: str = "if False:", file: str = FILE) -> dict[str, str]:
    return {"file": file, "find": find, "replace": replace}


def test_run_tells_a_guard_whose_test_fails_from_one_that_survives_and_from_a_broken_edit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guards = {
        "real": [edit()],
        "idle": [edit(REAL, REAL)],  # changes nothing
        "broken": [edit(replace="if (:")],  # is no Python
    }
    root = planted(tmp_path / "tree", guards, [(name, TEST) for name in guards])
    status = run.main(["--json"], root)
    said = json.loads(capsys.readouterr().out)
    assert (status, said["ok"]) == (1, False)
    assert {r["guard"]: r["verdict"] for r in said["rows"]} == {
        "real": "fails",
        "idle": "survives",
        "broken": "broken",
    }


@pytest.mark.parametrize("find", ["no such text", "digest"])
def test_run_refuses_a_text_that_is_absent_or_not_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], find: str
) -> None:
    root = planted(tmp_path / "tree", {"moved": [edit(find)]}, [("moved", TEST)])
    assert run.main([], root) == 2
    assert "times, not once" in capsys.readouterr().err


def test_run_refuses_a_guard_that_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = planted(tmp_path / "tree", {"real": [edit()]}, [("real", TEST)])
    assert run.main(["other"], root) == 2
    assert "no such guard: other" in capsys.readouterr().err


ROW = Row(1, "threat", "guard", "a.py::test_b", ("x.y",))


def report(
    when: str = "call", outcome: str = "failed", error: str = "AssertionError", test: str = ROW.test
) -> dict[str, str]:
    return {"test": test, "when": when, "outcome": outcome, "error": error, "said": "text"}


@pytest.mark.parametrize(
    ("reports", "trouble", "verdict"),
    [
        ([report()], "", "fails"),
        ([report(test=ROW.test + "[1]", outcome="passed"), report(test=ROW.test + "[2]")], "", "fails"),
        ([report(outcome="passed")], "", "survives"),
        ([report(error="NameError")], "", "broken"),
        ([report(when="setup")], "", "broken"),
        ([report(), report(when="teardown")], "", "broken"),
        ([], "", "broken"),
        ([], "no end within 1 s", "broken"),
        ([report(when="setup", outcome="skipped")], "", "not run"),
        ([report(test="a.py::test_bc")], "", "broken"),  # another test
    ],
)
def test_judge_takes_only_a_test_that_failed_for_a_failure(
    reports: list[dict[str, str]], trouble: str, verdict: str
) -> None:
    assert run.judge(ROW, run.Ran(tuple(reports), trouble)).verdict == verdict


@pytest.mark.parametrize(("marks", "status"), [(None, 0), ("root,tdx", 0), ("tdx", 1), ("", 1)])
def test_summary_lets_a_row_be_skipped_only_by_a_mark_that_is_allowed(marks: str | None, status: int) -> None:
    seen = run.Seen(1, "threat", "guard", "a.py::test_b", "not run", "Skipped: [root] needs root")
    text, found = run.summary([seen], marks)
    assert found == status
    assert "1 not run" in text


def test_load_rows_refuses_a_line_that_only_resembles_a_row() -> None:
    with pytest.raises(Unusable):
        table.load_rows("| 1 | threat | guard | `test` | `code` |")


def test_renumber_numbers_the_rows_as_they_stand(tmp_path: Path) -> None:
    root = planted(tmp_path / "tree", {"real": [edit()]}, [("real", TEST)] * 3)
    path = root / table.THREATS
    path.write_text(path.read_text().replace("| 2 |", "| 17 |"))
    assert run.main(["--renumber"], root) == 0
    assert [r.number for r in table.load_rows(path.read_text())] == [1, 2, 3]


def test_by_guard_refuses_a_guard_without_a_row_and_a_row_without_a_guard() -> None:
    guard = Guard("other", (Edit("a.py", "x", "y"),))
    with pytest.raises(Unusable, match="no such guard"):
        table.by_guard([ROW], {})
    with pytest.raises(Unusable, match="no threat names it"):
        table.by_guard([], {"other": guard})
