"""Every metric, meter and phase: unit, direction and meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FLOP_MODEL = "2"  # version of counts (meters/flop_model.py) and cost models; rows of others are not comparable
Meter = Literal["clock", "flops", "memory", "error", "direction", "health", "exact"]
METERS: tuple[Meter, ...] = ("clock", "flops", "memory", "error", "direction", "health")  # those of a probe
Phase = Literal["statistics", "invert", "precondition", "step"]
PHASES: tuple[Phase, ...] = ("statistics", "invert", "precondition", "step")


@dataclass(frozen=True)
class Metric:
    """Meaning of a metric: unit, which way is better ("lower", "higher" or "" for neither), one sentence."""

    unit: str
    better: Literal["lower", "higher", ""]
    text: str = field(default="")


SCORES = ("test.bleu", "test.rouge1", "test.rouge2", "test.rougeL")  # those of a problem, in percent
PER_EPOCH = (  # of which one may have a target
    *("train.loss", "train.accuracy", "valid.loss", "valid.accuracy", "test.loss", "test.accuracy"),
    *SCORES,
)
METRICS: dict[str, Metric] = {
    "error.relative": Metric("1", "lower", "|F^ - F| / |F| in Frobenius norm; `method` says what F is"),
    "error.scale_optimal": Metric(
        "1", "lower", "the relative error after the best scalar multiple, sqrt(1 - cosine^2)"
    ),
    "error.cosine": Metric("1", "higher", "<F^, F> / (|F^| |F|)"),
    "error.trace_ratio": Metric("1", "", "tr F^ / tr F; 1 is right"),
    "error.diagonal": Metric("1", "lower", "relative error of the diagonal"),
    "error.spectral": Metric("1", "lower", "relative error of the ten largest eigenvalues, as a vector"),
    "error.off_block": Metric("1", "", "share of |F|^2 outside the layer blocks: what no layer-wise method can have"),
    "error.sampling": Metric(
        "1", "lower", "relative error minus that of the same probe with the type-2 Fisher; only against an exact Fisher"
    ),
    "health.condition": Metric("1", "", "condition number of the damped operator"),
    "health.retries": Metric("1", "lower", "factorizations that had to be repeated in higher precision"),
    "health.residual": Metric(
        "1", "lower", "|(F^ + damping I) p - g| / |g| of the probe's own step p: what its solve has lost to rounding"
    ),
    "health.asymmetry": Metric("1", "lower", "|v'F^w - w'F^v| / (|v| |F^w|) for random v and w"),
    "direction.cosine": Metric("1", "higher", "cosine of the step with (F + damping I)^-1 g"),
    "direction.relative": Metric("1", "lower", "relative distance of the step from (F + damping I)^-1 g"),
    "direction.quality": Metric(
        "1", "higher", "share of the best decrease of the damped quadratic model at the step's best length, signed"
    ),
    "direction.quality_rates": Metric("1", "higher", "the same share with a free rate per layer"),
    "direction.gap_closed": Metric(
        "1", "higher", "quality on the scale where the gradient is 0 and the step by exact layer blocks is 1"
    ),
    "direction.length": Metric("1", "", "the best multiple of the step; 1 is right"),
    "direction.decrease": Metric(
        "1", "higher", "share of the best decrease at the length that the step has: it ranks lengths"
    ),
    "direction.gradient": Metric("1", "", "cosine of the step with the gradient; 1 is plain gradient descent"),
    "flops.counted": Metric("FLOP", "lower", "floating-point operations, 2 per multiply-add, counted as dispatched"),
    "flops.passes": Metric("FLOP", "lower", "of the counted ones, passes through the network: not the method's own"),
    "flops.uncounted_ops": Metric("1", "lower", "operations without a formula (named in `reason`); must be none"),
    "flops.model": Metric("FLOP", "", "the method's published complexity, 2 FLOP per multiply-add, no passes"),
    "flops.ratio": Metric("1", "lower", "counted FLOPs over those of a plain gradient step"),
    "memory.peak": Metric("B", "lower", "highest live tensor bytes above those live when the phase began"),
    "memory.state": Metric("B", "lower", "bytes of the tensors kept between steps"),
    "memory.model": Metric("B", "", "the method's published memory: numbers kept times their bytes"),
    "memory.ratio": Metric("1", "lower", "peak over the peak of a plain gradient step"),
    "time.wall": Metric("s", "lower", "median wall-clock seconds; raw samples beside it"),
    "time.cpu": Metric("s", "lower", "median CPU seconds of the process, which others do not lengthen; CPU only"),
    "time.ratio": Metric("1", "lower", "seconds over those of an SGD step measured in turn in the same process"),
    "time.floor": Metric("1", "lower", "seconds over those of the counted FLOPs at the machine's matrix-product peak"),
    "flops.hutchinson": Metric("1", "higher", "FLOPs of an estimate of |F| to 1 % over those of the exact |F|"),
    "machine.peak": Metric("FLOP/s", "higher", "rate of a square matrix product, measured in the same process"),
    "train.loss": Metric("1", "lower", "mean loss of the epoch's batches, each before its step, in training mode"),
    "train.accuracy": Metric("1", "higher", "share of hits in the same passes"),
    "test.loss": Metric("1", "lower", "mean loss on the test part after the epoch, in evaluation mode"),
    "test.accuracy": Metric("1", "higher", "share of hits on the test part after the epoch"),
    "test.bleu": Metric("%", "higher", "BLEU of greedy translations (sacrebleu, lower case, international tokens)"),
    "test.rouge1": Metric("%", "higher", "ROUGE-1 of greedy summaries, F1 with stemming, mean over the test part"),
    "test.rouge2": Metric("%", "higher", "ROUGE-2 of the same"),
    "test.rougeL": Metric("%", "higher", "ROUGE-L of the same"),
    "valid.loss": Metric("1", "lower", "mean loss on the share ``valid`` of the training part, not trained on"),
    "valid.accuracy": Metric("1", "higher", "share of hits on the same"),
    "train.seconds": Metric("s", "lower", "seconds of training up to the end of the epoch, without any evaluation"),
    "train.epochs_to_target": Metric("1", "lower", "epochs until the target was reached"),
    "train.seconds_to_target": Metric("s", "lower", "seconds of training until the end of that epoch"),
    "problem.samples": Metric("1", "", "samples measured, N"),
    "problem.parameters": Metric("1", "", "parameters compared, P"),
    "coverage.parameters": Metric("1", "higher", "share of the trainable parameters that is compared"),
    "coverage.trace": Metric("1", "higher", "share of the trace over all trainable parameters that is compared"),
}
