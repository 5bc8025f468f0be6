"""`python -m antechamber.broker.pccs URL`: a quote on stdin, its collateral from a PCCS or Intel's PCS on stdout.

A process of its own that ends without finalising: the library's runtime threads outlive the call, and an interpreter
that finalises under them can crash. Exit status 0 with JSON, 1 with the reason.
"""

import asyncio
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcap_qvl import QuoteCollateralV3


async def _fetch(url: str, quote: bytes) -> "QuoteCollateralV3":
    import dcap_qvl  # noqa: PLC0415  # an extra

    return await dcap_qvl.get_collateral(url, quote)  # wants the loop to run already when it is called


def main() -> int:
    try:
        said, status = asyncio.run(_fetch(sys.argv[1], sys.stdin.buffer.read())).to_json(), 0
    except (ValueError, RuntimeError, OSError) as e:
        said, status = str(e), 1
    sys.stdout.write(said)
    sys.stdout.flush()
    return status


if __name__ == "__main__":
    os._exit(main())
