"""What the numbers say: pure functions from DataFrames of rows."""
