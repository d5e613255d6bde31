"""One file, one method. The registry is this directory: a new file with one Probe is a new probe."""
