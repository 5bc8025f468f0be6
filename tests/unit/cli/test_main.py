import argparse
import io
import json
import sys
from typing import NoReturn

import pytest

from antechamber import cli, log
from antechamber.errors import AppraisalRefused


def ending(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> tuple[int, dict[str, object]]:
    def raising(_: argparse.Namespace) -> NoReturn:
        raise error

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log.setup("json")
    stream = sys.stderr
    status = cli.run(argparse.Namespace(run=raising))
    monkeypatch.undo()
    log.setup("text")
    lines = stream.getvalue().splitlines()  # type: ignore[attr-defined]
    return status, json.loads(lines[0]) if lines else {}


def test_run_logs_the_refusal_and_gives_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    status, record = ending(monkeypatch, AppraisalRefused("gpu.nonce", "seen", hint="do"))
    assert (status, record["code"], record["hint"]) == (77, "gpu.nonce", "do")


def test_run_gives_a_code_and_no_text_when_a_fault_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    status, record = ending(monkeypatch, ValueError("canary"))
    assert (status, record["code"]) == (70, "internal.fault")
    assert "ValueError" in str(record["detail"])
    assert "canary" not in json.dumps(record)


def test_run_is_quiet_when_the_user_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ending(monkeypatch, KeyboardInterrupt()) == (130, {})


@pytest.mark.parametrize("argv", [[], ["nothing"], ["quote", "00"], ["verify"], ["pack", "a", "b"]])
def test_main_exits_2_when_the_usage_is_wrong(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
