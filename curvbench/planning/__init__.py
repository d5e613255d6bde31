"""From the options of a run to its cells, and to what of them is left to do."""
