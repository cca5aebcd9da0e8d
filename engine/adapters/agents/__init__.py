"""The ways an agent is called: a Python function, an HTTP endpoint."""
