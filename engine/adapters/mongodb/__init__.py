"""Executions, artifacts and context documents in MongoDB, on Motor or on PyMongo's own asynchronous client."""
