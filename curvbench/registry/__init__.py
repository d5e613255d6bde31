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
from curvbench.registry.files import BY_PATH, OPTIMIZER, expect, load_file, loaded_files, source
from curvbench.registry.suites import (
    find_suite,
    load_suite,
    loaded_suites,
    packaged_suite,
    packaged_suites,
    spelled,
    suite_file,
    suite_files,
    title,
)

__all__ = [
    "BY_PATH",
    "OPTIMIZER",
    "describe",
    "every_probe",
    "expect",
    "find_suite",
    "load_file",
    "load_suite",
    "loaded_files",
    "loaded_suites",
    "packaged_suite",
    "packaged_suites",
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
    "spelled",
    "suite_file",
    "suite_files",
    "title",
]
