"""The calls of ``WorkflowEngine``, one class for each noun; ``engine.facade`` puts them together."""
