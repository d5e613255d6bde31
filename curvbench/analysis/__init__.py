"""Tables and verdicts: pure functions from frames of rows."""
