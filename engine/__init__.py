"""Baton: durable agent workflows on Temporal."""
