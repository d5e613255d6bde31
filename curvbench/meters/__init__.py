"""Measurements of a probe: errors, directions, costs, health and seconds."""
