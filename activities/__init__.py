"""Temporal activities: the agent call with its record, and the records of decisions."""
