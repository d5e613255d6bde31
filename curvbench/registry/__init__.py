"""Probes, problems and suites by name or by file, and their descriptions."""

from curvbench.registry.about import describe
from curvbench.registry.components import (
    every_probe,
    parse_drift,
    parse_probe,
    parse_problem,
    parse_training,
    probe,
    probes,
    problem,
    problems,
    selector,
)
from curvbench.registry.files import (
    BY_PATH,
    OPTIMIZER,
    expect,
    load_file,
    load_suite,
    loaded_files,
    loaded_suites,
    source,
    suite_file,
    suite_files,
)

__all__ = [
    "BY_PATH",
    "OPTIMIZER",
    "describe",
    "every_probe",
    "expect",
    "load_file",
    "load_suite",
    "loaded_files",
    "loaded_suites",
    "parse_drift",
    "parse_probe",
    "parse_problem",
    "parse_training",
    "probe",
    "probes",
    "problem",
    "problems",
    "selector",
    "source",
    "suite_file",
    "suite_files",
]
