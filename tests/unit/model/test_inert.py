"""A configuration file that streams by is JSON that names no code, or the model is refused."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antechamber.errors import ModelCorrupt
from antechamber.model.inert import ConfigGuard

JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "auto_map"]), inner, max_size=2),
    max_leaves=8,
)


def guard(raw: bytes, step: int) -> None:
    one = ConfigGuard("sub/tokenizer_config.json")
    for at in range(0, len(raw), step):
        one.update(memoryview(raw)[at : at + step])
    one.finish()


@given(st.binary(max_size=200), st.integers(1, 50))
def test_configuration_passes_or_is_refused_whatever_its_bytes(raw: bytes, step: int) -> None:
    with suppress(ModelCorrupt):
        guard(raw, step)


@given(JSON, st.integers(1, 50))
def test_configuration_is_refused_exactly_when_it_names_code(value: object, step: int) -> None:
    raw = json.dumps(value).encode()
    if b'"auto_map":' in raw:
        with pytest.raises(ModelCorrupt) as refused:
            guard(raw, step)
        assert refused.value.code == "model.code"
    else:
        guard(raw, step)
