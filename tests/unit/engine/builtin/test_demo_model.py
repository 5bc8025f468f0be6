from pathlib import Path

import numpy as np
import pytest

from antechamber.engine import builtin
from antechamber.engine.builtin import demo_model, weights
from antechamber.engine.builtin.generate import Job, Model
from antechamber.engine.builtin.llama import Llama
from antechamber.engine.builtin.tokens import Message, Sampling


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    demo_model.make(made)
    return made


def test_make_is_deterministic_and_small(directory: Path, tmp_path: Path) -> None:
    demo_model.make(tmp_path / "again")
    demo_model.make(tmp_path / "other", seed=1)
    files = {p.name: p.read_bytes() for p in directory.iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()}
    assert files["model.safetensors"] != (tmp_path / "other" / "model.safetensors").read_bytes()
    assert 500_000 < sum(map(len, files.values())) < 1_500_000


@pytest.mark.parametrize("seed", [0, 1])
def test_demo_questions_get_their_answers_as_chat_and_as_completion(tmp_path: Path, seed: int) -> None:
    demo_model.make(tmp_path, seed=seed)
    model = Model.load(tmp_path)
    for question, answer in demo_model._ANSWERS.items():
        assert model.greedy([Message("user", question)], 60) == answer
        assert model.greedy(question, 60) == " " + answer


def test_demo_answers_leave_room_for_other_arithmetic(directory: Path) -> None:
    """bfloat16 keeps 8 bits: an engine in that precision must choose the same tokens."""
    model = Model.load(directory)
    tokens, llama = model.tokens, model.llama
    for question, answer in demo_model._ANSWERS.items():
        prompt = tokens.conversation([Message("user", question)])
        said = [*tokens.tokenizer.encode(answer, add_special_tokens=False).ids, 2]
        logits = llama.logits(llama.hidden(prompt + said[:-1], llama.cache(200)))[len(prompt) - 1 :]
        right = logits[np.arange(len(said)), said].copy()
        logits[np.arange(len(said)), said] = -np.inf
        assert (right - logits.max(1)).min() > 4


def test_golden_is_the_greedy_text_and_stops_at_max_tokens(directory: Path) -> None:
    text = builtin.golden(directory, demo_model.GOLDEN_PROMPT, demo_model.GOLDEN_TOKENS)
    assert text.startswith(" Antechamber is the room before the chamber")
    assert builtin.golden(directory, demo_model.GOLDEN_PROMPT, 4) == " Antechamber is the room"


def test_golden_changes_with_every_matrix(directory: Path) -> None:
    golden = builtin.golden(directory, demo_model.GOLDEN_PROMPT, demo_model.GOLDEN_TOKENS)
    arch, _ = weights.load(directory)
    tensors = dict(weights.parse_tensors((directory / "model.safetensors").read_bytes()))
    tokens = Model.load(directory).tokens
    for name in (n for n, t in tensors.items() if t.ndim == 2):
        wrong = Llama.build(arch, weights.Weights.assemble(arch, tensors | {name: tensors[name][::-1]}))
        assert Model(wrong, tokens).greedy(demo_model.GOLDEN_PROMPT, demo_model.GOLDEN_TOKENS) != golden, name


def test_generate_stops_when_cancelled(directory: Path) -> None:
    model = Model.load(directory)
    job = Job(tuple(model.tokens.prompt("Hello")), 100, Sampling(temperature=0.0))
    calls = iter([False, False, True])
    pieces = list(model.generate(job, lambda: next(calls)))
    assert [p.finish for p in pieces] == [None, None]


def test_generate_ends_before_a_stop_string(directory: Path) -> None:
    model = Model.load(directory)
    job = Job(
        tuple(model.tokens.conversation([Message("user", "Where do you run?")])), 50, Sampling(0.0), (" machine",)
    )
    pieces = list(model.generate(job))
    assert "".join(p.text for p in pieces) == "In a confidential virtual"
    assert pieces[-1].finish == "stop"
