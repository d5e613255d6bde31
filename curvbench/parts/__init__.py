"""Code that several probes share: factors, updates, solves, and the ranges of hyperparameters."""
