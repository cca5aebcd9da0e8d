"""One number versions the interpreter's behaviour; it rides in the start envelope of every run.

A change that would replay differently adds a constant here, branches on ``envelope.interpreter_version`` as on any
other data, and comes with a recorded history under ``tests/replay/histories``. A run that a newer worker started
is not failed by an older one: its workflow task waits for the right worker.
"""

from typing import Final

VERSION_1: Final = 1
"""2026-11-22: the first. Agents by dependency, mappings, fallbacks, cancellation, deadline, continue-as-new."""

INTERPRETER_VERSION: Final = VERSION_1
