"""One-field mutations of good requests to a broker: each has a name that says which field, and is made by no chance.

`model` has what a good release consists of; `http`, `bodies`, `evidence` and `tokens` enumerate; `run` sends.
"""

from collections.abc import Iterator
from itertools import chain, islice

from mutations import bodies, evidence, http, tokens
from mutations.model import Mutation


def everything(count: int) -> list[Mutation]:
    """The first `count`, of which no two have one name: all that are enumerated, then bits changed here and there."""
    fixed = chain(http.mutations(), bodies.mutations(), tokens.mutations(), evidence.mutations())
    found: dict[str, Mutation] = {}
    for mutation in islice(_distinct(chain(fixed, evidence.more()), found), count):
        found[mutation.name] = mutation
    return list(found.values())


def _distinct(mutations: Iterator[Mutation], found: dict[str, Mutation]) -> Iterator[Mutation]:
    for mutation in mutations:
        if mutation.name in found:
            raise ValueError(f"two mutations are named {mutation.name}")
        yield mutation
