"""Run one target under libFuzzer: `python -m fuzz.one TARGET FINDINGS LAUNCHER [libFuzzer's arguments]`.

LAUNCHER is an executable that does the same again: libFuzzer's merge starts it.

A finding does not end the run: its input and traceback go to the directory FINDINGS, one for each place in the code. A
hang, too much memory and a crash of native code do end it: libFuzzer's own artifact is there then.
"""

import logging
import sys
import traceback
import warnings
from pathlib import Path
from random import Random

import atheris
from fuzz.contract import file_name
from fuzz.targets import load

INSTRUMENTED = ["antechamber", "tomllib", "rfc8785", "joserfc"]  # not yaml: it would be far slower, and is not ours


class Findings:
    """What broke the contract, each place once."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._seen = directory, set[str]()

    def add(self, data: bytes, error: BaseException) -> None:
        place = traceback.extract_tb(error.__traceback__)[-1]
        name = f"{type(error).__name__}-{Path(place.filename).stem}-{place.lineno}"
        if name in self._seen:
            return
        self._seen.add(name)
        (self._directory / name).write_bytes(data)
        (self._directory / f"{name}.txt").write_text("".join(traceback.format_exception(error)))
        print(f"FINDING {name} {file_name(data)}", file=sys.stderr, flush=True)


def main() -> None:
    findings = Findings(Path(sys.argv[2]))
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = load(sys.argv[1])
        from fuzz.contract import outcome
        from fuzz.mutation import Mutator
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")

    @atheris.instrument_func
    def one(data: bytes) -> None:
        try:
            outcome(target, data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust code is no Exception
            findings.add(data, error)

    def mutate(data: bytes, limit: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.4:
            return atheris.Mutate(data, limit)
        mutator = Mutator(random, atheris.Mutate, target.words, limit)
        try:
            changed = target.mutate(mutator, data)
        except Exception:
            changed = None  # not of this structure any more
        return changed if changed is not None and len(changed) <= limit else atheris.Mutate(data, limit)

    atheris.Setup(sys.argv[3:], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
