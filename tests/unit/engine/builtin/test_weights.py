import json
from pathlib import Path

import numpy as np
import pytest
from engines import refusals
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from antechamber.engine.builtin import demo_model, weights
from antechamber.engine.builtin.weights import Architecture
from antechamber.errors import EngineFailed

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 5,
    "max_position_embeddings": 16,
}


def parse(**changes: object) -> Architecture:
    return Architecture.parse(json.dumps(CONFIG | changes).encode())


def test_architecture_fills_in_what_older_files_leave_out() -> None:
    arch = Architecture.parse(json.dumps({k: v for k, v in CONFIG.items() if k != "num_key_value_heads"}).encode())
    assert (arch.kv_heads, arch.head_dim, arch.epsilon, arch.rope.theta, arch.tied) == (4, 2, 1e-6, 10000.0, False)
    assert (arch.bos, arch.eos) == (None, frozenset())


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_architecture_reads_llama3_scaling_old_and_new(key: str) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    rope = parse(**{key: scaling}, rope_theta=500000.0).rope
    assert (rope.theta, rope.factor, rope.original_context) == (500000.0, 8.0, 64)


def test_architecture_takes_the_theta_of_rope_parameters() -> None:
    assert parse(rope_parameters={"rope_type": "default", "rope_theta": 5e5}).rope.theta == 5e5


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["MixtralForCausalLM"]},
        {"architectures": ["LlamaForCausalLM", "Other"]},
        {"model_type": "mllama"},
        {"auto_map": {"AutoModel": "evil.Model"}},
        {"quantization_config": {"quant_method": "awq"}},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"num_key_value_heads": 3},
        {"head_dim": 3},
        {"vocab_size": 0},
        {"vocab_size": True},
        {"hidden_size": "8"},
        {"rms_norm_eps": -1},
        {"eos_token_id": [1, "2"]},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "llama3"}},
        {"rope_scaling": "llama3"},
    ],
)
def test_architecture_refuses_what_the_engine_does_not_compute(changes: dict[str, object]) -> None:
    with pytest.raises(EngineFailed) as refused:
        parse(**changes)
    assert refused.value.code == "engine.model"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.binary(max_size=64)
    | st.dictionaries(st.sampled_from([*CONFIG, "rope_scaling", "eos_token_id", "head_dim"]), JSON)
)
def test_architecture_parses_or_refuses_any_config(value: bytes | dict[str, object]) -> None:
    raw = value if isinstance(value, bytes) else json.dumps(CONFIG | value).encode()
    with refusals("engine.model", "engine.json"):
        Architecture.parse(raw)


@given(st.binary(max_size=64) | st.binary(max_size=48).map(lambda b: len(b).to_bytes(8, "little") + b))
def test_tensors_parse_or_refuse_any_bytes(raw: bytes) -> None:
    with refusals("engine.model"):
        list(weights.parse_tensors(raw))


def test_tensors_widen_float16_exactly() -> None:
    half = np.array([[1.5, -0.25], [65504, 6e-8]], np.float16)
    assert np.array_equal(dict(weights.parse_tensors(save({"t": half})))["t"], half.astype(np.float32))


def test_tensors_widen_bfloat16_exactly() -> None:
    data = np.array([0x3F80, 0xC000, 0x7F7F, 0x0001], "<u2").tobytes()  # 1, -2, the largest, the smallest
    header = json.dumps({"t": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    tensor = dict(weights.parse_tensors(len(header).to_bytes(8, "little") + header + data))["t"]
    assert tensor.tolist() == [1.0, -2.0, 3.3895313892515355e38, 9.183549615799121e-41]


def test_tensors_refuse_integers() -> None:
    with pytest.raises(EngineFailed) as refused:
        list(weights.parse_tensors(save({"t": np.zeros(2, np.int8)})))
    assert refused.value.code == "engine.model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    demo_model.make(directory)
    return directory


def tensors(model: Path) -> dict[str, weights.Array]:
    return dict(weights.parse_tensors((model / "model.safetensors").read_bytes()))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("lm_head.weight", None),
        ("model.norm.weight", np.zeros(3, np.float32)),
        ("model.layers.9.mlp.up_proj.weight", np.zeros((2, 2), np.float32)),
        ("evil", np.zeros(1, np.float32)),
    ],
)
def test_assemble_refuses_tensors_that_the_architecture_does_not_have(
    model: Path, name: str, tensor: "np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None"
) -> None:
    arch, _ = weights.load(model)
    found = {k: v for k, v in (tensors(model) | {name: tensor}).items() if v is not None}
    with pytest.raises(EngineFailed) as refused:
        weights.Weights.assemble(arch, found)
    assert refused.value.code == "engine.model"


def test_assemble_ties_the_head_to_the_embedding(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {"tie_word_embeddings": True}
    arch = Architecture.parse(json.dumps(config).encode())
    tied = weights.Weights.assemble(arch, tensors(model))
    assert tied.head is tied.embedding


def shards(model: Path, to: Path, names: dict[str, str]) -> Path:
    to.mkdir()
    (to / "config.json").write_bytes((model / "config.json").read_bytes())
    halves = sorted(tensors(model).items())
    for name, part in (("a.safetensors", halves[::2]), ("b.safetensors", halves[1::2])):
        save_file(dict(part), to / name)
    (to / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return to


def test_load_reads_shards(model: Path, tmp_path: Path) -> None:
    split = shards(model, tmp_path / "split", {"x": "a.safetensors", "y": "b.safetensors"})
    assert np.array_equal(weights.load(split)[1].head, weights.load(model)[1].head)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "a.bin", 7, ""])
def test_load_refuses_shards_outside_the_directory(model: Path, tmp_path: Path, name: object) -> None:
    split = shards(model, tmp_path / "split", {"x": name})  # type: ignore[dict-item]
    with pytest.raises(EngineFailed) as refused:
        weights.load(split)
    assert refused.value.code == "engine.model"


def test_load_refuses_a_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed) as refused:
        weights.load(tmp_path)
    assert refused.value.code == "engine.model"
    assert str(tmp_path) not in str(refused.value)
