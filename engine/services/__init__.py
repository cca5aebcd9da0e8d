"""Decisions: validation, versions, starts, repair. Services know ports, never a driver."""
