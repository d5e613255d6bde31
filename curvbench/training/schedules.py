"""Learning-rate schedules: the factor that multiplies the learning rate at every step of a training."""

from __future__ import annotations

import math
from collections.abc import Callable

from curvbench.spec import Training

# LNGD's cosine variant approaches the rate _FLOOR, over the share _SPAN of half a cosine wave.
_FLOOR, _SPAN = 1e-3, 0.94


def factor(training: Training, steps_per_epoch: int) -> Callable[[int], float]:
    """The factor of ``training.lr`` at step 0, 1, ...; epochs of ``Training`` are converted into steps."""
    total, growing = training.epochs * steps_per_epoch, training.warmup * steps_per_epoch
    falling = next((decay for decay in training.decay if decay.field == "lr"), None)

    def at(step: int) -> float:
        warm = min(1.0, (step + 1) / growing if growing else 1.0)
        if falling is not None and training.lr:
            return warm * falling.at(training.lr, step) / training.lr
        return warm * _decay(training, min(step / total, 1.0))

    return at


def _decay(training: Training, t: float) -> float:
    match training.schedule:
        case "step":
            return training.factor ** sum(t >= share for share in training.at)
        case "cosine":
            return (1 + math.cos(math.pi * t)) / 2
        case "cosine-variant":
            low = _FLOOR / training.lr if training.lr else 0.0
            return low + (1 - low) * (1 + math.cos(_SPAN * math.pi * t)) / 2
        case "polynomial":
            return (1 - t) ** training.power
        case "constant":
            return 1.0
