"""Print the part of a lock file that the agent itself needs on the guest's Python: no extra, no tool."""

import importlib.metadata
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

GUEST = {"python_version": "3.13", "python_full_version": "3.13.0", "extra": ""}


def needed(name: str) -> set[str]:
    """The names of all that `name` requires."""
    found, waiting = set(), [name]
    while waiting:
        for text in importlib.metadata.requires(waiting.pop()) or []:
            requirement = Requirement(text)
            known = canonicalize_name(requirement.name)
            if known not in found and applies(requirement):
                found.add(known)
                waiting.append(known)
    return found


def applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(GUEST)


def main() -> None:
    wanted = needed("antechamber")
    for block in re.findall(r"^\w[^\n]*\\\n(?: +[^\n]*\n)+", Path(sys.argv[1]).read_text(), re.MULTILINE):
        requirement = Requirement(block.partition("\\")[0].strip())  # one package, its hashes below it
        if canonicalize_name(requirement.name) in wanted and applies(requirement):
            sys.stdout.write(block)


if __name__ == "__main__":
    main()
