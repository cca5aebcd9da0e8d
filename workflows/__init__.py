"""The Temporal workflow that interprets every definition."""
