"""One number versions the interpreter's behaviour; it rides in the start envelope of every run.

A change that would replay differently adds a constant here, branches on ``envelope.interpreter_version`` as on any
other data, and comes with a recorded history under ``tests/replay/histories``. A run that a newer worker started
is not failed by an older one: its workflow task waits for the right worker.
"""

from typing import Final

VERSION_1: Final = 1
"""2026-11-22: the first. Agents by dependency, mappings, fallbacks, cancellation, deadline, continue-as-new."""

VERSION_2: Final = 2
"""2026-11-23: definitions that decide. Conditions, joins, handoffs, items, loops, gates, children, clean-up, budgets,
pause. A plan without them is run as before; the number keeps a worker that does not know them from running one."""

INTERPRETER_VERSION: Final = VERSION_2
