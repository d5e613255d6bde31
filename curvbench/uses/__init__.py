"""The uses of parameters in a forward pass: which calls read them, whose samples their rows are, and their blocks."""
