"""Translations between a port and one outside system; no decisions."""
