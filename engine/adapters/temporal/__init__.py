"""Everything that speaks Temporal from outside of workflows and activities."""
