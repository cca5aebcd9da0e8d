"""`python -m engine.cli` is the same program as `./baton`."""

from __future__ import annotations

from engine.cli.root import baton

if __name__ == "__main__":
    baton(prog_name="baton")
