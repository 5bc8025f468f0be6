import hashlib
from pathlib import Path

import pytest
from engines import refusals
from hypothesis import given
from hypothesis import strategies as st

from antechamber.engine import catalog
from antechamber.engine.catalog import Launch
from antechamber.engine.options import ALLOWED, FORBIDDEN
from antechamber.errors import ConfigError

KINDS = sorted(ALLOWED)


def plan(kind: str = "builtin", **changes: object) -> Launch:
    given = {
        "image": "",
        "options": (),
        "model": Path("/run/a/model"),
        "name": "demo",
        "socket": Path("/run/a/engine/engine.sock"),
        "python": "/usr/bin/python3",
    }
    return catalog.plan(kind=kind, **(given | changes))  # type: ignore[arg-type]


def test_plan_puts_vllm_on_a_unix_socket() -> None:
    launch = plan("vllm")
    assert launch.argv[:3] == ("vllm", "serve", "/run/a/model")
    assert launch.argv[launch.argv.index("--uds") + 1] == launch.socket == "/run/a/engine/engine.sock"
    assert "--disable-uvicorn-access-log" in launch.argv
    assert launch.transport == "unix"


@pytest.mark.parametrize("kind", ["sglang", "tgi", "tensorrt-llm"])
def test_plan_keeps_engines_without_a_unix_socket_on_loopback(kind: str) -> None:
    launch = plan(kind)
    assert launch.transport == "loopback"
    assert "127.0.0.1" in launch.argv
    assert str(catalog.PORT) in launch.argv


def test_plan_isolates_the_builtin_engines_python() -> None:
    assert plan().argv[:4] == ("/usr/bin/python3", "-I", "-m", "antechamber.engine.builtin")


@pytest.mark.parametrize("kind", KINDS)
def test_plan_takes_nothing_from_the_environment(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan(kind).env
    for name in ("LD_PRELOAD", "PYTHONPATH", "VLLM_SERVER_DEV_MODE", "HF_TOKEN", "PATH", "HOME"):
        monkeypatch.setenv(name, "/evil")
    assert plan(kind).env == before
    assert before["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("kind", KINDS)
def test_plan_passes_every_option_that_it_names(kind: str) -> None:
    for option, form in ALLOWED[kind].items():
        given = (
            (option,) if form is None else (option, "1" if "d{0,8}" in form else "0.5" if "0\\." in form else "auto")
        )
        assert plan(kind, options=given).argv[-len(given) :] == given


@pytest.mark.parametrize("kind", KINDS)
def test_no_option_is_both_allowed_and_forbidden(kind: str) -> None:
    assert not {o.replace("_", "-") for o in ALLOWED[kind]} & set(FORBIDDEN)


@pytest.mark.parametrize(
    "options",
    [
        ("--max-model-len",),
        ("--max-model-len", "many"),
        ("--max-model-len", "--trust-remote-code"),
        ("--max-model-len=1\n",),
        ("--max-model-len=1", "--max-model-len=2"),
        ("--enforce-eager=1",),
        ("stray",),
        ("",),
        ("--dtype", "auto", "stray"),
        ("--unheard-of",),
    ],
)
def test_plan_refuses_options_out_of_form(options: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        plan("vllm", options=options)
    assert refused.value.code == "engine.option"


@given(st.sampled_from(KINDS), st.lists(st.text(max_size=30), max_size=4).map(tuple))
def test_permitted_passes_or_refuses_any_options(kind: str, options: tuple[str, ...]) -> None:
    with refusals("engine.option"):
        assert catalog.permitted(kind, options) == options


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"kind": "ollama"}, "engine.kind"),
        ({"model": Path("model")}, "engine.path"),
        ({"socket": Path("/" + "s" * 107)}, "engine.path"),
        ({"name": "--uds"}, "engine.path"),
    ],
)
def test_plan_refuses_what_it_cannot_name(changes: dict[str, object], code: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan(**changes)  # type: ignore[arg-type]
    assert refused.value.code == code


def test_measured_changes_with_kind_image_and_argv_only() -> None:
    base = catalog.measured(plan("vllm"))
    assert base == catalog.measured(plan("vllm"))
    others = {
        catalog.measured(plan("vllm", image="ab" * 32)),
        catalog.measured(plan("vllm", options=("--seed", "7"))),
        catalog.measured(plan("sglang")),
    }
    assert len(others | {base}) == 4
    # sha384 of RFC 8785 JSON, which coreutils can repeat
    assert catalog.measured(
        Launch(kind="k", image="", argv=("a", "b"), env={}, cwd="/", socket="", transport="unix")
    ) == ("sha384:" + hashlib.sha384(b'{"argv":["a","b"],"image":"","kind":"k"}').hexdigest())


def test_launch_survives_json() -> None:
    launch = plan("vllm")
    assert Launch.from_json({"ok": True} | launch.to_json()) == launch


@given(
    st.dictionaries(
        st.sampled_from(["kind", "image", "argv", "env", "cwd", "socket", "transport"]),
        st.none()
        | st.integers()
        | st.text()
        | st.lists(st.text())
        | st.dictionaries(st.text(), st.text() | st.integers()),
    )
)
def test_launch_parses_or_refuses_any_answer(value: dict[str, object]) -> None:
    with refusals(*(f"engine.launch.{reason}" for reason in ("missing", "type", "value"))):
        Launch.from_json(value)
