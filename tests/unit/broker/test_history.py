"""Limits of a rule: how often, until when, how many at once. They outlast the process and no clock gives them back."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antechamber.broker.history import History
from antechamber.broker.rules import KEPT_S, GuestLimit, ReleaseLimit, ResourceRule
from antechamber.broker.store import Database
from antechamber.errors import BrokerDenied

KEY, T = "a/b/c", 1_800_000_000
LIVE = GuestLimit(max=2, boot_s=100, lease_s=30)


def rule(**limits: Any) -> ResourceRule:
    free = {"until": "unlimited", "releases": "unlimited", "at_once": "unlimited"}
    return ResourceRule(policy="p", **({"phase": "any"} | free | limits))


def history(tmp_path: Path) -> History:
    """Each call is another run of the broker over the same file."""
    return History(Database(str(tmp_path / "broker.sqlite")))


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(BrokerDenied) as refused:
        call()
    return refused.value.code


def release(kept: History, guest: str, limits: ResourceRule, now: int) -> None:
    with kept.releasing(KEY, guest, limits, now):
        pass


def lease(kept: History, guest: str, limits: ResourceRule, now: int) -> None:
    kept.lease(guest, {KEY: limits}, now)


def test_release_ends_at_the_second_that_until_names(tmp_path: Path) -> None:
    limits = rule(until="2027-01-15T08:00:00Z")
    assert limits.ends() == T
    release(history(tmp_path), "g", limits, T - 1)
    assert code_of(lambda: release(history(tmp_path), "g", limits, T)) == "rules.until"


def test_releases_fill_a_window_that_slides(tmp_path: Path) -> None:
    limits = rule(releases=ReleaseLimit(max=2, per_s=60))
    for now in (T, T + 30):
        release(history(tmp_path), "g", limits, now)
    assert code_of(lambda: release(history(tmp_path), "h", limits, T + 59)) == "rules.releases"
    release(history(tmp_path), "h", limits, T + 60)  # the first has left, the second has not
    assert code_of(lambda: release(history(tmp_path), "h", limits, T + 89)) == "rules.releases"
    release(history(tmp_path), "h", limits, T + 90)


def test_releases_of_another_resource_do_not_count(tmp_path: Path) -> None:
    limits, kept = rule(releases=ReleaseLimit(max=1, per_s=60)), history(tmp_path)
    release(kept, "g", limits, T)
    with kept.releasing("a/b/other", "g", limits, T):
        pass


def test_refused_release_is_not_counted(tmp_path: Path) -> None:
    limits, kept = rule(releases=ReleaseLimit(max=1, per_s=60)), history(tmp_path)
    release(kept, "g", limits, T)
    for now in range(T, T + 60, 7):
        code_of(lambda now=now: release(kept, "g", limits, now))
    release(kept, "g", limits, T + 60)


def test_release_is_not_recorded_when_the_session_was_spent_meanwhile(tmp_path: Path) -> None:
    limits, kept = rule(releases=ReleaseLimit(max=1, per_s=60)), history(tmp_path)
    with pytest.raises(BrokerDenied), kept.releasing(KEY, "g", limits, T):
        raise BrokerDenied("session.spent", "", hint="")
    release(kept, "g", limits, T)


def test_clock_that_goes_back_gives_no_release_back(tmp_path: Path) -> None:
    limits = rule(releases=ReleaseLimit(max=1, per_s=60), until="2027-01-15T09:00:00Z")
    release(history(tmp_path), "g", limits, T)
    for now in (T - 1, T - 3600, 0):
        assert code_of(lambda now=now: release(history(tmp_path), "g", limits, now)) == "rules.releases"
    with history(tmp_path).releasing("a/b/other", "g", rule(), T + 7200):
        pass
    assert code_of(lambda: release(history(tmp_path), "g", limits, T)) == "rules.until"


def test_boot_releases_once_and_a_restart_does_not_forget(tmp_path: Path) -> None:
    limits = rule(phase="boot")
    release(history(tmp_path), "g", limits, T)
    assert code_of(lambda: release(history(tmp_path), "g", limits, T + 90_000)) == "session.spent"
    assert history(tmp_path).spent() == {"g": T}
    release(history(tmp_path), "h", limits, T)


def test_guests_at_once_are_counted_until_their_boot_window_ends(tmp_path: Path) -> None:
    limits = rule(at_once=LIVE)
    release(history(tmp_path), "g", limits, T)
    release(history(tmp_path), "h", limits, T + 10)
    assert code_of(lambda: release(history(tmp_path), "i", limits, T + 99)) == "rules.at-once"
    release(history(tmp_path), "i", limits, T + 100)
    assert code_of(lambda: release(history(tmp_path), "g", limits, T + 100)) == "rules.at-once"


def test_guest_that_is_live_counts_once(tmp_path: Path) -> None:
    limits, kept = rule(at_once=LIVE), history(tmp_path)
    release(kept, "g", limits, T)
    release(kept, "h", limits, T)
    release(kept, "g", limits, T + 1)


def test_lease_keeps_a_place_and_lets_go_when_it_is_not_renewed(tmp_path: Path) -> None:
    limits = rule(at_once=LIVE)
    for guest in ("g", "h"):
        release(history(tmp_path), guest, limits, T)
    lease(history(tmp_path), "h", limits, T + 5)  # and never again
    assert code_of(lambda: release(history(tmp_path), "i", limits, T + 34)) == "rules.at-once"
    lease(history(tmp_path), "g", limits, T + 90)
    release(history(tmp_path), "i", limits, T + 91)
    assert code_of(lambda: release(history(tmp_path), "j", limits, T + 119)) == "rules.at-once"
    release(history(tmp_path), "j", limits, T + 120)


def test_guest_that_lapsed_comes_back_only_where_there_is_room(tmp_path: Path) -> None:
    limits, kept = rule(at_once=LIVE), history(tmp_path)
    for guest in ("g", "h"):
        release(kept, guest, limits, T)
        lease(kept, guest, limits, T + 1)
    lease(kept, "h", limits, T + 29)
    lease(kept, "g", limits, T + 40)  # late, and nobody took its place
    release(kept, "i", limits, T + 70)
    lease(kept, "i", limits, T + 71)
    release(kept, "j", limits, T + 72)
    assert code_of(lambda: lease(kept, "g", limits, T + 73)) == "rules.at-once"
    lease(kept, "i", limits, T + 74)


def test_lease_of_a_guest_that_holds_nothing_limited_is_free(tmp_path: Path) -> None:
    kept = history(tmp_path)
    lease(kept, "g", rule(at_once=LIVE), T)
    for guest in "ghi":
        release(kept, guest, rule(), T)
        kept.lease(guest, {KEY: rule()}, T)
        kept.lease(guest, {}, T)


def test_clock_that_goes_back_frees_no_place(tmp_path: Path) -> None:
    limits = rule(at_once=GuestLimit(max=1, boot_s=100, lease_s=30))
    release(history(tmp_path), "g", limits, T)
    assert code_of(lambda: release(history(tmp_path), "h", limits, T - 10_000)) == "rules.at-once"


def test_history_forgets_only_what_no_limit_can_count(tmp_path: Path) -> None:
    limits, kept = rule(releases=ReleaseLimit(max=1, per_s=KEPT_S)), history(tmp_path)
    release(kept, "g", limits, T)
    assert code_of(lambda: release(kept, "g", limits, T + KEPT_S - 1)) == "rules.releases"
    release(kept, "h", limits, T + KEPT_S)
    with Database(str(tmp_path / "broker.sqlite")).read() as db:
        assert db.execute("SELECT guest FROM release").fetchall() == [("h",)]
        assert db.execute("SELECT guest FROM holder").fetchall() == [("h",)]


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (rule(releases=ReleaseLimit(max=3, per_s=3600)), "rules.releases"),
        (rule(at_once=GuestLimit(max=3, boot_s=3600, lease_s=60)), "rules.at-once"),
    ],
)
def test_requests_at_once_exceed_no_limit(tmp_path: Path, limits: ResourceRule, code: str) -> None:
    """Two processes' connections and eight threads: the database decides, not a lock of ours."""
    brokers, start = [history(tmp_path) for _ in range(2)], threading.Barrier(8)
    outcomes: list[str] = []

    def ask(number: int) -> None:
        start.wait()
        try:
            release(brokers[number % 2], f"guest {number}", limits, T)
            outcomes.append("released")
        except BrokerDenied as e:
            outcomes.append(e.code)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == sorted(["released"] * 3 + [code] * 5)


def test_question_is_answered_as_the_request_would_be_and_records_nothing(tmp_path: Path) -> None:
    limits, kept = (
        rule(releases=ReleaseLimit(max=1, per_s=60), at_once=GuestLimit(max=1, boot_s=9, lease_s=9)),
        history(tmp_path),
    )
    for _ in range(3):
        kept.require_release(KEY, "g", limits, T)
    release(kept, "g", limits, T)
    assert code_of(lambda: kept.require_release(KEY, "g", limits, T + 1)) == "rules.releases"
    assert code_of(lambda: kept.require_release(KEY, "g", limits, T - 900)) == "rules.releases"
    kept.require_release(KEY, "g", limits, T + 60)
    assert code_of(lambda: release(kept, "h", limits, T + 1)) == "rules.releases"
    kept.require_lease("g", {KEY: limits}, T + 1)


steps = st.lists(
    st.tuples(st.sampled_from(["release", "lease", "restart"]), st.sampled_from("ghijk"), st.integers(-50, 50)),
    max_size=40,
)


@given(steps)
def test_no_sequence_exceeds_a_limit(todo: list[tuple[str, str, int]]) -> None:
    """Against a model that keeps every event, and a clock that goes both ways."""
    import tempfile

    limits = rule(releases=ReleaseLimit(max=4, per_s=60), at_once=LIVE)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        kept, clock, latest = history(Path(directory)), T, 0
        releases: list[int] = []
        last: dict[str, tuple[int, int]] = {}  # guest: when, and for how long that counts
        for what, guest, step in todo:
            clock += step
            if what == "restart":
                kept = history(Path(directory))
                continue
            now = max(latest, clock)
            live = {g for g, (at, lasts) in last.items() if now < at + lasts}
            place = guest in live or len(live) < 2
            if what == "release" and len([t for t in releases if t > now - 60]) >= 4:
                expected = "rules.releases"
            elif place or (what == "lease" and guest not in last):
                expected = ""
            else:
                expected = "rules.at-once"
            ask = release if what == "release" else lease
            if expected:
                assert code_of(partial(ask, kept, guest, limits, clock)) == expected
                continue
            ask(kept, guest, limits, clock)
            latest = now
            if what == "release":
                releases.append(now)
            if what == "lease" and guest in last:
                last[guest] = (now, 30)
            elif what == "release" and last.get(guest) != (now, 30):
                last[guest] = (now, 100)
