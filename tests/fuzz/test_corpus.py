"""The kept corpora, and mutations of the seeds, hold the contract on every Python, without Atheris."""

from random import Random

import pytest
from fuzz.contract import NOW, Target, file_name, kept, outcome, require_sayable
from fuzz.main import MAX_BYTES, MAX_FILES, main
from fuzz.mutation import Mutator, simple_havoc
from fuzz.targets import NAMES, load

from antechamber.errors import AgentError, MalformedEvidence

MUTATIONS = 150


@pytest.fixture(params=NAMES)
def target(request: pytest.FixtureRequest) -> Target:
    return load(request.param)


@pytest.mark.filterwarnings("ignore")
def test_kept_corpus_is_read_or_refused(target: Target) -> None:
    inputs = [path.read_bytes() for path in kept(target)]
    assert inputs, f"no corpus of {target.name}: scripts/fuzz {target.name}; scripts/fuzz {target.name} --minimise"
    for data in inputs:
        outcome(target, data)


def test_kept_corpus_is_small_and_named_by_content(target: Target) -> None:
    paths = kept(target)
    assert [path.name for path in paths] == [file_name(path.read_bytes()) for path in paths]
    assert len(paths) <= MAX_FILES
    assert sum(path.stat().st_size for path in paths) <= MAX_BYTES


@pytest.mark.filterwarnings("ignore")
def test_real_evidence_is_read_or_refused(target: Target) -> None:
    for data in target.vectors():
        outcome(target, data)


@pytest.mark.filterwarnings("ignore")
def test_first_seed_is_read(target: Target) -> None:
    """A target whose valid input is refused tests nothing below the first layer."""
    assert outcome(target, target.seeds()[0]) == ""


@pytest.mark.filterwarnings("ignore")
def test_mutations_of_seeds_are_read_or_refused(target: Target) -> None:
    random = Random(NOW)
    mutator, seeds = Mutator(random, simple_havoc(random), target.words), target.seeds()
    seen = set()
    for _ in range(MUTATIONS):
        data = random.choice(seeds)
        try:
            data = target.mutate(mutator, data)
        except Exception:
            continue  # the structure does not carry this change
        seen.add(outcome(target, data))
    assert len(seen) > 1, f"only {seen}: the mutator does not get past the first refusal"


def test_contract_refuses_what_is_no_refusal() -> None:
    """The contract itself: a code that is none, and what cannot be written."""

    class Loose(AgentError):
        def __init__(self, code: str, detail: str) -> None:
            self.code, self.detail, self.hint = code, detail, ""

    for wrong in (Loose("no code", ""), Loose("a.b", "\ud800"), Loose("a.b", "x" * 5000)):
        with pytest.raises((AssertionError, UnicodeEncodeError)):
            require_sayable(wrong)
    require_sayable(MalformedEvidence("quote.short", "\ud800" * 5000, hint="h"))


def test_contract_lets_other_exceptions_through() -> None:
    def run(data: bytes) -> None:
        raise KeyError(data)

    broken = Target(name="broken", run=run, seeds=list, mutate=lambda m, data: data)
    with pytest.raises(KeyError):
        outcome(broken, b"")


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--seconds", "-1"], ["--jobs", "0"], ["nosuch"]], ids=str)
def test_run_without_end_or_without_a_target_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
