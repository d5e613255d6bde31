"""Parts that several probes share: factors, updates, solves, and the ranges of their hyperparameters."""
