"""`python -m antechamber.engine.builtin --model DIR --socket PATH --served-model-name NAME`."""

import argparse
import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from antechamber import log
from antechamber.engine.builtin.generate import Model
from antechamber.engine.builtin.server import Limits, serve
from antechamber.errors import AgentError, EngineFailed


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="antechamber.engine.builtin", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--socket", type=Path, required=True, metavar="PATH")
    parser.add_argument("--served-model-name", required=True, metavar="NAME")
    parser.add_argument("--max-model-len", type=int, metavar="TOKENS", help="use less of the model's context")
    parser.add_argument(
        "--max-num-seqs", type=int, default=Limits().running, metavar="N", help="answers computed at once"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    log.setup()
    os.umask(0o007)  # the socket is for our user and group
    try:
        start = time.monotonic()
        model = shorten(Model.load(args.model), args.max_model_len)
        if not 1 <= args.max_num_seqs <= 256:
            raise EngineFailed("engine.option", f"--max-num-seqs is {args.max_num_seqs}", hint="1 to 256")
        log.event("engine.loaded", ms=round((time.monotonic() - start) * 1000, 1))
        asyncio.run(serve(model, args.served_model_name, args.socket, Limits(running=args.max_num_seqs)))
    except AgentError as error:
        log.failure(error)
        return error.exit_status
    return 0


def shorten(model: Model, context: int | None) -> Model:
    """The same model with a shorter context. Raises EngineFailed `engine.option`."""
    if context is None:
        return model
    if not 1 <= context <= model.context:
        raise EngineFailed("engine.option", f"--max-model-len is {context}", hint=f"1 to {model.context}")
    arch = dataclasses.replace(model.llama.arch, context=context)
    return dataclasses.replace(model, llama=dataclasses.replace(model.llama, arch=arch))


if __name__ == "__main__":
    sys.exit(main())
