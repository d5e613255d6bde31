"""Every contract of curvbench: read this page first.

The way of the data::

    suite --planning.selection--> cells = problem x probe x seed --engines--> a process per cell --cells.measure--> rows
       rows --store--> one Parquet fragment per cell --load()--> DataFrame --> table, report, dashboard, gate

The map of the house, on which the pages of the dashboard stand (``dashboard/``). A room imports only rooms of its own
floor and below, and no file imports in a circle; a test holds both::

    8  cli          the command line: verbs, progress, exit codes
    7  comparison   a model of the user's, measured in this process, with its verdict
    6  planning     what a run has to do: which cells, which are left to run, what a search tries next
       report       a run as a page or as text
    5  engines      where cells run: here, in own processes, on a cluster
       plot         figures from rows
    4  cells        how one cell becomes rows: its reference and checkpoint files, its measurement, its training
       analysis     tables and verdicts from rows
       prediction   what methods cost on a network, from its layer shapes alone
    3  optim        training with a probe: NaturalGradient
       training     the loop, snapshots and schedules
       identity     what a number depends on: code, libraries, machine, cell
       store        Parquet, and the only room that knows it
    2  probes       the methods            parts     what several methods share
       problems     models with data       meters    what is measured of a probe
       registry     components by name or file, and what they say of themselves
    1  fisher       the exact Fisher matrix
       instance     a model, a batch and a loss, ready to be measured
       uses         which calls of a pass read which parameters, and whose rows
       operators    represented matrices    states   states of probes: averaged, stored, joined over ranks
       data         data sets
    0  spec         the contracts           numerics  factorizations that say if they struggled
       words        near misses, texts in one line, deaths of processes
       shipped      where the shipped suites, data and dashboard lie

Legend of shape letters, used in names and docstrings everywhere:

    N  samples of a batch                T  loss terms per sample (tokens of a sequence; 1 otherwise)
    C  network outputs (classes)         R  score columns per sample (C - 1 for type-2 cross entropy)
    S  weight-sharing positions of a layer (pixels, tokens; 1 for a plain Linear)
    G  groups of a convolution (1 otherwise)
    D  inputs of a layer per group, the constant 1 of the bias included (last)
    M  outputs of a layer per group
    P  parameters compared, over all layers      L  layers
    K  rank, or number of vectors

A parameter vector has length P: block after block, weights before lookups (embeddings) before vectors (norms, other
biases, positions), each in ``named_parameters`` order and a row-major matrix of shape (G * M, D): ``[W | b]`` of a
weight with its bias, ``[scale | shift]`` of a norm. "Layer" is the name of a block here.
"""

from curvbench.spec.components import Component
from curvbench.spec.digits import DIGITS, FactorDtype, StatisticsDtype
from curvbench.spec.drift import Drift
from curvbench.spec.geometry import PARAMETERS, FisherType, Kind, Layer, LayerSize, Parameters, refuse_parameters
from curvbench.spec.metrics import FLOP_MODEL, METERS, METRICS, PER_EPOCH, PHASES, PROBED, SCORES, Meter, Metric, Phase
from curvbench.spec.outcomes import Diverged, NoMatrix, Report, Row, Skip, Status, Unsupported
from curvbench.spec.probe import About, FisherProbe, Follows, Probe, Role, StepRule, Weighs
from curvbench.spec.problem import AdamRecipe, Dataset, Problem, Recipe, Trainer
from curvbench.spec.refusals import MOST_THREADS, refuse_twice
from curvbench.spec.suite import (
    DAMPING,
    SURROGATE,
    TRIALS,
    Cell,
    Precision,
    Preset,
    Resources,
    Suite,
    Summary,
    refuse_damping,
)
from curvbench.spec.training import Augmentation, Decay, Schedule, Search, Training, decayed, refuse_decays

__all__ = [
    "DAMPING",
    "DIGITS",
    "FLOP_MODEL",
    "METERS",
    "METRICS",
    "MOST_THREADS",
    "PARAMETERS",
    "PER_EPOCH",
    "PHASES",
    "PROBED",
    "SCORES",
    "SURROGATE",
    "TRIALS",
    "About",
    "AdamRecipe",
    "Augmentation",
    "Cell",
    "Component",
    "Dataset",
    "Decay",
    "Diverged",
    "Drift",
    "FactorDtype",
    "FisherProbe",
    "FisherType",
    "Follows",
    "Kind",
    "Layer",
    "LayerSize",
    "Meter",
    "Metric",
    "NoMatrix",
    "Parameters",
    "Phase",
    "Precision",
    "Preset",
    "Probe",
    "Problem",
    "Recipe",
    "Report",
    "Resources",
    "Role",
    "Row",
    "Schedule",
    "Search",
    "Skip",
    "StatisticsDtype",
    "Status",
    "StepRule",
    "Suite",
    "Summary",
    "Trainer",
    "Training",
    "Unsupported",
    "Weighs",
    "decayed",
    "refuse_damping",
    "refuse_decays",
    "refuse_parameters",
    "refuse_twice",
]
