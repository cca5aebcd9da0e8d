"""The model check as a command: ``python -m tests.model.check --cases 10000 --from 0``."""

from __future__ import annotations

import argparse
import sys
import time

from tests.model.model_check import checked

TOLD_EVERY = 500


def main() -> int:
    """Check cases until one fails; return the exit code."""
    parser = argparse.ArgumentParser(description="Check the reducer against its reference on random executions.")
    parser.add_argument("--cases", type=int, default=10_000, help="how many (default: 10,000)")
    parser.add_argument("--from", dest="first", type=int, default=0, help="seed of the first one (default: 0)")
    arguments = parser.parse_args()
    began = time.monotonic()
    for number in range(arguments.cases):
        seed = arguments.first + number
        difference = checked(seed)
        if difference is not None:
            print(difference)
            return 1
        if (number + 1) % TOLD_EVERY == 0:
            print(f"{number + 1} cases agree, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{arguments.cases} cases from {arguments.first} agree, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
