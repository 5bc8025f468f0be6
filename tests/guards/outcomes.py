"""A pytest plugin: what became of each test, as JSON lines; and that the package under test is this tree's own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

_FILE = "--outcomes"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(_FILE, metavar="FILE")


def pytest_configure(config: pytest.Config) -> None:
    import antechamber

    if not Path(antechamber.__file__).is_relative_to(config.rootpath):
        raise pytest.UsageError(f"antechamber is imported from {antechamber.__file__}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    made = yield
    report = made.get_result()  # type: ignore[attr-defined]
    error = call.excinfo
    said = {
        "test": item.nodeid.removeprefix("tests/"),
        "when": report.when,
        "outcome": report.outcome,
        "error": "" if error is None else error.typename,
        "said": "" if error is None else " ".join(str(error.value).split())[:200],
    }
    with Path(item.config.getoption(_FILE)).open("a") as file:
        file.write(json.dumps(said) + "\n")
