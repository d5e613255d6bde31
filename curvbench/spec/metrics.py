"""Every metric, meter and phase: unit, direction and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FLOP_MODEL = "2"  # version of counted and published FLOPs; rows with another FLOP_MODEL are not comparable
Meter = Literal[
    "clock",
    "flops",
    "memory",
    "error",
    "direction",
    "health",
    "damping",
    "condition",
    "population",
    "staleness",
    "exact",
    "likeness",
    "inputs",
]
METERS: tuple[Meter, ...] = ("clock", "flops", "memory", "error", "direction", "health")  # those of a table, by default
PROBED: frozenset[Meter] = frozenset({*METERS, "damping", "condition", "population", "staleness"})
"""The meters of a probe; the others measure the network on its batch."""

Phase = Literal["statistics", "invert", "precondition", "step"]
PHASES: tuple[Phase, ...] = ("statistics", "invert", "precondition", "step")


@dataclass(frozen=True)
class Metric:
    """The meaning of a metric.

    ``unit``: its unit. ``better``: which way is better, or nothing if neither is. ``label``: its name for people, as
    axes show it. ``text``: what it is, in one sentence. ``columns``: the headings, by scope, of its columns in the
    table at the end of a run, whose legend stands in ``analysis.summary``; a table of measurements takes errors,
    directions and costs, a table of trainings takes ``test.`` and ``train.``. Figures offer every metric.
    """

    unit: str
    better: Literal["lower", "higher", ""]
    label: str = ""
    text: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)


SCORES = ("test.bleu", "test.rouge1", "test.rouge2", "test.rougeL")  # scores of a problem, in percent
PER_EPOCH = (  # one of these may have a target
    *("train.loss", "train.accuracy", "valid.loss", "valid.accuracy", "test.loss", "test.accuracy"),
    *SCORES,
)
METRICS: dict[str, Metric] = {  # in the order of the table's columns
    "error.relative": Metric(
        "1",
        "lower",
        "relative error",
        "|F^ - F| / |F| in Frobenius norm; the row's `method` says what F is",
        {"network": "error\nnetwork", "layer blocks": "error\nblocks"},
    ),
    "error.scale_optimal": Metric(
        "1",
        "lower",
        "relative error after the best scaling",
        "the relative error after the best scalar multiple, sqrt(1 - cosine^2)",
        {"layer blocks": "scaled\nblocks"},
    ),
    "error.cosine": Metric("1", "higher", "cosine with the exact Fisher", "<F^, F> / (|F^| |F|)"),
    "error.trace_ratio": Metric("1", "", "trace over the exact trace", "tr F^ / tr F; 1 is right"),
    "error.diagonal": Metric("1", "lower", "relative error of the diagonal", "relative error of the diagonal"),
    "error.spectral": Metric(
        "1",
        "lower",
        "relative error of the largest eigenvalues",
        "relative error of the ten largest eigenvalues, as a vector",
    ),
    "error.off_block": Metric(
        "1",
        "",
        "share outside the layer blocks",
        "share of |F|^2 outside the layer blocks, which no layer-wise method can have",
    ),
    "error.share": Metric(
        "1",
        "",
        "share of the squared error",
        "share of |F^ - F|^2 over the layer blocks that lies in this layer; none if F^ is exact but for rounding",
    ),
    "error.inside": Metric(
        "1",
        "",
        "share of the squared error inside the leading eigenspace",
        "share of |F^ - F|^2 in the span of the ten leading eigenvectors of F; none if F^ is exact but for rounding",
    ),
    "error.cross": Metric(
        "1",
        "",
        "share of the squared error across the leading eigenspace",
        "share of |F^ - F|^2 between the span of the ten leading eigenvectors of F and its complement",
    ),
    "error.outside": Metric(
        "1",
        "",
        "share of the squared error outside the leading eigenspace",
        "share of |F^ - F|^2 within the complement of the span of the ten leading eigenvectors of F",
    ),
    "error.kl": Metric(
        "nats",
        "lower",
        "divergence per parameter",
        "KL(C, C^) / P = (tr C^^-1 C - log det C^^-1 C - P) / 2P of C = F + damping I and the damped matrix C^ whose "
        "inverse the step applies",
    ),
    "error.kl_scaled": Metric(
        "nats",
        "lower",
        "divergence per parameter after the best scaling",
        "the divergence per parameter from the best multiple of the damped matrix",
    ),
    "error.kl_off_block": Metric(
        "nats",
        "",
        "divergence of the layer blocks per parameter",
        "KL(C, layer blocks of C) / P: the least divergence of every layer-wise method",
    ),
    "error.condition": Metric(
        "1",
        "lower",
        "condition number that is left",
        "condition number of C^^-1 C for C = F + damping I and the damped matrix C^: what conjugate gradients would "
        "still have to do",
    ),
    "error.damped": Metric(
        "1",
        "lower",
        "relative error against the damped Fisher",
        "|F^ - F - damping I| / |F + damping I|, only of probes whose F^ estimates F + damping I instead of F, so that "
        "their relative error contains the damping",
    ),
    "error.sampling": Metric(
        "1",
        "lower",
        "error of drawn labels",
        "relative error minus the same probe's with the type-2 Fisher; only against an exact Fisher",
    ),
    "error.population": Metric(
        "1",
        "lower",
        "relative error on other samples",
        "|F^ - F_B| / |F_B|: F^ from the measured batch A, F_B the exact Fisher of a disjoint, larger batch B",
    ),
    "error.unbiased": Metric(
        "1",
        "lower",
        "relative error against the population",
        "|F^ - F_pop| / |F_pop| from B without the bias of B's own noise; negative (the root of a negative estimate of "
        "the square, with its sign) where noise is larger than the error",
    ),
    "error.floor": Metric(
        "1",
        "",
        "relative error of the exact Fisher of the batch",
        "|F_A - F_B| / |F_B| of two exact Fishers: the sampling error of batch A, the same for every probe",
    ),
    "health.condition": Metric("1", "", "condition number", "condition number of the damped operator"),
    "health.retries": Metric(
        "1", "lower", "repeated factorizations", "factorizations that had to be repeated in higher precision"
    ),
    "health.residual": Metric(
        "1",
        "lower",
        "residual of the solve",
        "|(F^ + damping I) p - g| / |g| of the probe's own step p: the digits that its solve has lost to rounding",
    ),
    "health.asymmetry": Metric("1", "lower", "asymmetry", "|v'F^w - w'F^v| / (|v| |F^w|) for random v and w"),
    "linearity.homogeneity": Metric(
        "1",
        "lower",
        "distance from homogeneous",
        "largest |P(cg) - cP(g)| / |cP(g)| over c = 2, 1/2, -1 of an optimizer's step P; the scope is its reading",
    ),
    "linearity.additivity": Metric(
        "1",
        "lower",
        "distance from additive",
        "|P(g + h) - P(g) - P(h)| / |P(g + h)| for gradients of two other batches; the scope is the reading",
    ),
    "direction.cosine": Metric(
        "1",
        "higher",
        "cosine with the exact step",
        "cosine of the step with (F + damping I)^-1 g",
        {"network": "step\ncosine"},
    ),
    "direction.relative": Metric(
        "1", "lower", "relative distance from the exact step", "relative distance of the step from (F + damping I)^-1 g"
    ),
    "direction.quality": Metric(
        "1",
        "higher",
        "step quality",
        "share of the best decrease of the damped quadratic model at the step's best length, signed",
        {"network": "step\nquality"},
    ),
    "direction.population": Metric(
        "1",
        "higher",
        "step quality on other samples",
        "quality against F_B of the step for B's gradient that statistics of the measured batch A precondition",
    ),
    "direction.quality_rates": Metric(
        "1",
        "higher",
        "step quality with a rate per layer",
        "share of the best decrease of the damped quadratic model with a free rate per layer",
    ),
    "direction.gap_closed": Metric(
        "1",
        "higher",
        "share of the gap closed",
        "quality on the scale where the gradient is 0 and the step by exact layer blocks is 1",
        {"network": "gap\nclosed"},
    ),
    "direction.length": Metric("1", "", "best multiple of the step", "the best multiple of the step; 1 is right"),
    "direction.decrease": Metric(
        "1",
        "higher",
        "share of the best decrease at the step's length",
        "share of the best decrease at the length that the step has, so that it ranks lengths",
    ),
    "direction.gradient": Metric(
        "1", "", "cosine with the gradient", "cosine of the step with the gradient; 1 is plain gradient descent"
    ),
    "stale.error": Metric(
        "1",
        "lower",
        "relative error of stale statistics",
        "|F^_t - F_t+k| / |F_t+k|: statistics of step t of one training, held k steps later on the same samples",
    ),
    "stale.floor": Metric(
        "1",
        "",
        "drift of the exact Fisher",
        "|F_t - F_t+k| / |F_t+k| of the exact Fisher of the same samples: what moves under every probe",
    ),
    "stale.quality": Metric(
        "1",
        "higher",
        "step quality of stale statistics",
        "quality against F_t+k of the step for the gradient of step t + k that statistics of step t precondition",
    ),
    "stale.cost": Metric(
        "1",
        "lower",
        "cost of a step in gradients",
        "FLOPs over those of a gradient step, its own gradient not counted: statistics and inversion every k steps "
        "(every step for k = 0), what a step needs in between, and preconditioning",
    ),
    "damping.best": Metric(
        "1",
        "",
        "best damping",
        "the probe's damping of the grid, in units of the mean Fisher, with the largest decrease of the loss on a "
        "second batch; in a layer with the largest quality of its own step",
    ),
    "damping.plateau": Metric(
        "decades",
        "higher",
        "width of the damping's plateau",
        "decades of damping around the best one in which the decrease, in a layer the quality, is at least 95 % of the "
        "best, between values of the grid by straight lines over the logarithm",
    ),
    "damping.decrease": Metric(
        "1",
        "higher",
        "decrease of the loss",
        "decrease of the loss on a second batch by the step at its best length, at the best damping or the scope's",
    ),
    "damping.quality": Metric(
        "1",
        "higher",
        "step quality at a damping",
        "largest step quality over the grid of the probe's damping, or that at the scope's; the target keeps its own",
    ),
    "damping.gap_closed": Metric(
        "1",
        "higher",
        "share of the gap closed at the best damping",
        "largest share of the gap that the step closes over the grid of the probe's damping; the target keeps its own",
    ),
    "gram.cosine": Metric(
        "1",
        "",
        "cosine of two layers' Gram matrices",
        "cosine of the off-diagonal parts of two layers' U'U, normalised to a diagonal of ones, U the samples' scores "
        "at their own labels; of a layer with the next one, or the mean over ``adjacent`` or ``distant`` pairs",
    ),
    "inputs.gaussian": Metric(
        "1",
        "lower",
        "distance of inputs from a Gaussian",
        "Kolmogorov distance, over samples, of a coordinate of a layer's input from the Gaussian of its mean and "
        "variance; median over coordinates",
    ),
    "inputs.positive": Metric(
        "1",
        "lower",
        "distance of inputs from a Gaussian's positive part",
        "Kolmogorov distance, over samples, of a coordinate of a layer's input from max(0, Z), Z the Gaussian for "
        "which that has its mean and share of zeros; median over coordinates",
    ),
    "inputs.norm": Metric(
        "1",
        "lower",
        "distance of the inputs' norms from a Gaussian",
        "Kolmogorov distance, over samples, of the Euclidean norm of a layer's input from the Gaussian of its mean and "
        "variance",
    ),
    "flops.counted": Metric(
        "FLOP", "lower", "FLOPs", "floating-point operations, 2 per multiply-add, counted as dispatched"
    ),
    "flops.passes": Metric(
        "FLOP",
        "lower",
        "FLOPs of passes",
        "counted operations of passes through the network, which are not the method's own",
    ),
    "flops.uncounted_ops": Metric(
        "1", "lower", "operations without a formula", "operations without a formula (named in `reason`); must be none"
    ),
    "flops.model": Metric(
        "FLOP", "", "published FLOPs", "the method's published complexity, 2 FLOP per multiply-add, no passes"
    ),
    "flops.ratio": Metric(
        "1", "lower", "FLOPs over SGD's", "counted FLOPs over those of a plain gradient step", {"step": "FLOPs\nx SGD"}
    ),
    "memory.peak": Metric(
        "B", "lower", "peak memory", "highest live tensor bytes above those live when the phase began"
    ),
    "memory.state": Metric("B", "lower", "memory between steps", "bytes of the tensors kept between steps"),
    "memory.model": Metric(
        "B", "", "published memory", "the method's published memory: numbers kept times their bytes"
    ),
    "memory.ratio": Metric(
        "1", "lower", "peak memory over SGD's", "peak over the peak of a plain gradient step", {"step": "memory\nx SGD"}
    ),
    "time.wall": Metric("s", "lower", "seconds", "median wall-clock seconds; raw samples beside it"),
    "time.cpu": Metric(
        "s", "lower", "CPU seconds", "median CPU seconds of the process, which others do not lengthen; CPU only"
    ),
    "time.ratio": Metric(
        "1",
        "lower",
        "seconds over SGD's",
        "seconds over those of an SGD step measured in turn in the same process",
        {"step": "time\nx SGD"},
    ),
    "time.floor": Metric(
        "1",
        "lower",
        "seconds over those at peak rate",
        "seconds over those of the counted FLOPs, each at the machine's matrix-product peak of the dtype it runs in",
    ),
    "time.floor.values": Metric(
        "1",
        "lower",
        "seconds over those at the peak of the values",
        "seconds over those of the counted FLOPs at the matrix-product peak of the stage's values: of float64 for the "
        "passes of mixed precision",
    ),
    "flops.hutchinson": Metric(
        "1",
        "higher",
        "FLOPs of a stochastic estimate over the exact",
        "FLOPs of an estimate of |F| to 1 % over those of the exact |F|",
    ),
    "machine.peak": Metric(
        "FLOP/s", "higher", "rate of a matrix product", "rate of a square matrix product, measured in the same process"
    ),
    "test.accuracy": Metric(
        "1", "higher", "test accuracy", "share of hits on the test part after the epoch", {"network": "test\naccuracy"}
    ),
    "test.bleu": Metric(
        "%",
        "higher",
        "test BLEU",
        "BLEU of greedy translations (sacrebleu, lower case, international tokens)",
        {"network": "test\nBLEU"},
    ),
    "test.rouge1": Metric(
        "%",
        "higher",
        "test ROUGE-1",
        "ROUGE-1 of greedy summaries, F1 with stemming, mean over the test part",
        {"network": "test\nR-1"},
    ),
    "test.rouge2": Metric(
        "%",
        "higher",
        "test ROUGE-2",
        "ROUGE-2 of greedy summaries, F1 with stemming, mean over the test part",
        {"network": "test\nR-2"},
    ),
    "test.rougeL": Metric(
        "%",
        "higher",
        "test ROUGE-L",
        "ROUGE-L of greedy summaries, F1 with stemming, mean over the test part",
        {"network": "test\nR-L"},
    ),
    "test.loss": Metric(
        "1",
        "lower",
        "test loss",
        "mean loss on the test part after the epoch, in evaluation mode",
        {"network": "test\nloss"},
    ),
    "valid.accuracy": Metric(
        "1",
        "higher",
        "validation accuracy",
        "share of hits on the share ``valid`` of the training part, not trained on",
    ),
    "valid.loss": Metric(
        "1", "lower", "validation loss", "mean loss on the share ``valid`` of the training part, not trained on"
    ),
    "train.accuracy": Metric(
        "1",
        "higher",
        "training accuracy",
        "share of hits in the batches of the epoch, each before its step, in training mode",
    ),
    "train.loss": Metric(
        "1",
        "lower",
        "training loss",
        "mean loss of the epoch's batches, each before its step, in training mode",
        {"network": "train\nloss"},
    ),
    "train.seconds": Metric(
        "s",
        "lower",
        "seconds of training",
        "seconds of training up to the end of the epoch, without any evaluation",
        {"network": "train\nseconds"},
    ),
    "pace.ratio": Metric(
        "1",
        "lower",
        "time of a training step over SGD's",
        "seconds of a training's step of the scope's kind over those of torch's SGD in the same turn; step: plain "
        "steps, statistics and inversion at the training's intervals",
        {"plain": "plain\nx SGD", "step": "step\nx SGD"},
    ),
    "pace.part": Metric(
        "1",
        "lower",
        "time of a part of a training step over SGD's step",
        "seconds of the part of a training's step that the scope names over those of a whole step of torch's SGD",
        {"backward": "backward\nx SGD"},
    ),
    "pace.seconds": Metric(
        "s",
        "lower",
        "seconds of a training step",
        "seconds of a training's step by kind: plain, with statistics, with statistics and inversion, and their mean",
        {"step": "step\nseconds"},
    ),
    "pace.flops_ratio": Metric(
        "1",
        "lower",
        "FLOPs of a training step over SGD's",
        "counted operations of a training's mean step over those of a step of torch's SGD",
        {"step": "step FLOPs\nx SGD"},
    ),
    "pace.flops": Metric("FLOP", "lower", "FLOPs of a training step", "counted operations of a training's mean step"),
    "train.epochs_to_target": Metric(
        "1", "lower", "epochs to the target", "epochs until the target was reached", {"network": "epochs to\ntarget"}
    ),
    "train.seconds_to_target": Metric(
        "s",
        "lower",
        "seconds to the target",
        "seconds of training until the end of the epoch in which the target was reached",
        {"network": "seconds to\ntarget"},
    ),
    "problem.samples": Metric("1", "", "samples", "samples measured, N"),
    "problem.parameters": Metric("1", "", "parameters", "parameters compared, P"),
    "coverage.parameters": Metric(
        "1", "higher", "share of the parameters covered", "share of the trainable parameters that is compared"
    ),
    "coverage.trace": Metric(
        "1", "higher", "share of the trace covered", "share of the trace over all trainable parameters that is compared"
    ),
}
