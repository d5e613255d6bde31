"""The rooms that compare, count or read a clock."""
