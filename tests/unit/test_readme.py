"""README stays true: its table of codes is what the source raises, and its commands parse."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from antechamber.cli.parser import build_parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^ *(antechamber .*)$", "\n".join(re.findall(r"```\n(.*?)```", README, re.S)), re.M)


def test_codes_of_the_readme_are_those_of_the_source() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "codes"))["table"]()
    assert written in README, "run scripts/codes --write"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_readme_parses(command: str) -> None:
    build_parser().parse_args(shlex.split(command.partition(" > ")[0])[1:])


def _help_examples() -> list[str]:
    found, waiting = [], [build_parser()]
    while waiting:
        parser = waiting.pop()
        found += re.findall(r"^  (antechamber .*)$", parser.epilog or "", re.M)
        for action in parser._actions:
            if hasattr(action, "choices") and isinstance(action.choices, dict):
                waiting += action.choices.values()
    return found


@pytest.mark.parametrize("example", sorted(set(_help_examples())))
def test_example_of_the_help_parses(example: str) -> None:
    words = shlex.split(re.sub(r"\$\(openssl rand -hex 64\)", "00" * 64, example.partition(" > ")[0]))
    build_parser().parse_args(words[1:])


def test_every_command_has_an_example_when_help_is_asked() -> None:
    top = next(a for a in build_parser()._actions if isinstance(a.choices, dict))
    assert set(top.choices) >= {
        "boot", "exec", "gateway", "run", "verify", "pack", "hash", "broker", "collateral", "quote", "status",
    }  # fmt: skip
    for name, parser in top.choices.items():
        assert "examples:" in (parser.epilog or ""), name


@pytest.mark.parametrize("link", re.findall(r"\]\(((?:agent|docs|pyproject)[^)]*)\)", README))
def test_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link.partition("#")[0]).exists()


PAGES = sorted(p.relative_to(ROOT) for p in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
        assert (ROOT / page.parent / link).exists(), link


HARDWARE = re.findall(  # of the column with the commands
    r"`(antechamber [a-z][^`]*)`",
    "\n".join(re.findall(r"^\| \d+ \|[^|]*\|([^|]*)\|", (ROOT / "docs" / "hardware.md").read_text(), re.M)),
)


@pytest.mark.parametrize("command", [c for c in dict.fromkeys(HARDWARE) if "..." not in c])
def test_command_for_hardware_parses(command: str) -> None:
    words = command.replace("$(openssl rand -hex 64)", "00" * 64).partition(" > ")[0]
    build_parser().parse_args(shlex.split(words)[1:])


def test_examples_of_the_documentation_load() -> None:
    from antechamber import config
    from antechamber.broker.rules import load_rules
    from antechamber.evidence.policy import load_policy

    examples = ROOT / "docs" / "examples"
    guest, _ = config.load(str(examples / "antechamber.yaml"))
    rules = load_rules((examples / "broker-policy.yaml").read_bytes()).rules
    assert load_policy((examples / "policy.yaml").read_bytes()) == rules.policies["production"]
    assert f"kbs:///{next(iter(rules.resources))}" == guest.model.key
