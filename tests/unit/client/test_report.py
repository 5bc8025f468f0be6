from hypothesis import given
from hypothesis import strategies as st

from antechamber.client import report
from antechamber.evidence.appraise import AttestationResult, Claim

HELD = Claim("mr_td", "held", "ab" * 48, "ab" * 48)
FAILED = Claim("tcb_status", "failed", "OutOfDate", "UpToDate", "appraisal.tcb-status")
OPEN = Claim("gpu0 measurements", "not-appraised", "signed by the GPU", "not compared")


def test_report_shows_a_line_a_claim_and_the_conclusion() -> None:
    lines = report.as_text(AttestationResult((HELD, OPEN), "intel, nvidia", 0), ascii_only=False).split("\n")
    assert lines[0].startswith("✔ mr_td ")
    assert lines[1] == "– gpu0 measurements  signed by the GPU  (not compared)"
    assert (
        lines[2] == "ACCEPTED: 1 held, 0 failed, 1 not appraised; anchor intel, nvidia, judged at 1970-01-01T00:00:00Z"
    )


def test_report_shows_what_was_seen_and_wanted_when_a_claim_fails() -> None:
    text = report.as_text(AttestationResult((FAILED,), "intel, nvidia", 0), ascii_only=True)
    assert "X tcb_status  appraisal.tcb-status\n" in text
    assert "is OutOfDate\n" in text
    assert "not UpToDate\n" in text
    assert text.splitlines()[-1].startswith("REFUSED: 0 held, 1 failed")


def test_report_is_loud_when_the_anchor_is_simulated() -> None:
    for anchor in ("simulated:0011, nvidia", "intel, simulated:0011", "intel, nvidia, simulated:0011", "intel", ""):
        result = AttestationResult((HELD,), anchor, 0)
        assert "SIMULATED HARDWARE" in report.as_text(result)
        assert report.as_json(result)["simulated"] is True
    assert report.as_json(AttestationResult((HELD,), "intel, nvidia", 0))["simulated"] is False
    assert "SIMULATED" not in report.as_text(AttestationResult((HELD,), "intel, nvidia", 0))


def test_report_refuses_when_nothing_was_appraised() -> None:
    assert "REFUSED" in report.as_text(AttestationResult((), "intel, nvidia", 0))
    assert report.as_json(AttestationResult((), "intel, nvidia", 0))["ok"] is False


def test_report_colours_only_when_told() -> None:
    result = AttestationResult((HELD,), "intel, nvidia", 0)
    assert "\x1b" not in report.as_text(result)
    assert "\x1b[32m" in report.as_text(result, colour=True)


@given(st.text(max_size=80))
def test_plain_is_printable_for_any_text(text: str) -> None:
    assert report.plain(text, False).isprintable()
    assert report.plain(text, True).isascii()
