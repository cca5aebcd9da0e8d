"""`python -m engine.cli` is the same program as `./baton`."""

from __future__ import annotations

from engine.cli.invocation import end_process, import_from_working_folder
from engine.cli.root import baton

if __name__ == "__main__":
    import_from_working_folder()
    try:
        baton(prog_name="baton")
    except SystemExit as end:
        end_process(end.code if isinstance(end.code, int) else 0)
