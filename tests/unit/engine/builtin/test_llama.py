"""The forward pass: against transformers where it is installed, against itself everywhere."""

from pathlib import Path

import numpy as np
import pytest

from antechamber.engine.builtin import demo_model
from antechamber.engine.builtin.llama import Llama, inverse_frequencies
from antechamber.engine.builtin.weights import Rope

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    directory = tmp_path_factory.mktemp("model")
    demo_model.make(directory)
    return Llama.load(directory)


def test_hidden_is_the_same_in_one_piece_in_chunks_and_token_by_token(llama: Llama) -> None:
    tokens = np.random.default_rng(1).integers(0, 512, 300).tolist()
    whole = llama.hidden(tokens, llama.cache(300))
    chunked = np.concatenate(list(llama.prefill(tokens, llama.cache(300))))
    cache = llama.cache(300)
    single = np.concatenate([llama.hidden([t], cache) for t in tokens])
    np.testing.assert_allclose(chunked, whole, atol=2e-4)
    np.testing.assert_allclose(single, whole, atol=2e-4)


def test_hidden_does_not_see_what_comes_after(llama: Llama) -> None:
    a, b = [5, 6, 7, 8], [5, 6, 7, 300]
    np.testing.assert_array_equal(llama.hidden(a, llama.cache(4))[:3], llama.hidden(b, llama.cache(4))[:3])


def test_frequencies_keep_the_fast_and_slow_the_slow_for_llama3() -> None:
    plain = inverse_frequencies(Rope(500000.0), 64)
    scaled = inverse_frequencies(Rope(500000.0, 8.0, 1.0, 4.0, 8192), 64)
    assert scaled[0] == plain[0]
    np.testing.assert_allclose(scaled[-1], plain[-1] / 8, rtol=1e-6)
    assert np.all(np.diff(scaled) < 0)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("float32", {}),
        ("bfloat16", {"tie_word_embeddings": True}),
        ("float16", {"head_dim": 32, "rope_theta": 500000.0}),
        ("float32", {"num_key_value_heads": 4}),
        ("bfloat16", {"rope_scaling": LLAMA3}),
    ],
)
def test_logits_are_those_of_transformers(tmp_path: Path, dtype: str, settings: dict[str, object]) -> None:
    torch = pytest.importorskip("torch", reason="[torch] needs torch and transformers")
    transformers = pytest.importorskip("transformers", reason="[torch] needs torch and transformers")
    torch.manual_seed(0)
    shape = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,  # large enough for attention to be sharp
    }
    config = transformers.LlamaConfig(**(shape | settings))
    transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = np.random.default_rng(1).integers(0, 512, 400).tolist()
    with torch.no_grad():
        wanted = theirs(torch.tensor([tokens])).logits[0].numpy()
    ours = Llama.load(tmp_path)
    cache = ours.cache(400)
    states = [*ours.prefill(tokens[:390], cache), *(ours.hidden([t], cache) for t in tokens[390:])]
    assert np.abs(ours.logits(np.concatenate(states)) - wanted).max() < 1e-3
    assert np.abs(wanted).max() > 1
