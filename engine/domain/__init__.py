"""Pure rules and shapes: no I/O, no clock, no randomness, so that replays of a workflow agree."""
