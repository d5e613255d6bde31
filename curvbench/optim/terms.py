"""The loss terms of a pass, read from the gradient that the loss sent to the outputs.

A term's gradient is c times the residual at its target, with one c for all terms: the mean over terms, a factor of the
loss and that of a gradient scaler. A term without gradient is none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvbench.instance.likelihood import IGNORED, Likelihood
from curvbench.instance.likelihood.diagonal import Bernoulli, Gaussian
from curvbench.instance.likelihood.reduced import Reduced
from curvbench.instance.likelihood.softmax import CrossEntropy
from curvbench.instance.likelihood.weighted import WeightedCrossEntropy
from curvbench.instance.outputs import Returned, arranged
from curvbench.numerics import widened
from curvbench.spec import Diverged

_ROUNDING = 16  # units in the last place of a softmax, beside those of its argument
FORWARD = "call the model as optimizer.forward(inputs, targets)"


def targets_of(model: Likelihood, outputs: Returned, gradient: Tensor) -> Tensor:
    """The targets of a pass from its outputs and the gradient there, in the layout of the outputs as they come.

    A Gaussian's c is that of the mean over terms, because any gradient is that of some target.

    Raises:
        Diverged: the gradient is not finite.
        ValueError: the gradient is that of another loss, or the likelihood's targets cannot be read.
    """
    if not bool(gradient.isfinite().all()):
        raise Diverged("the gradient holds NaN or infinity")
    inner = model.inner if isinstance(model, Reduced) else model
    if isinstance(outputs, Tensor):
        if isinstance(inner, (CrossEntropy, WeightedCrossEntropy)):
            return _labels(inner, outputs, gradient)
        if isinstance(inner, Bernoulli):
            targets = (gradient < 0).to(widened(outputs).dtype)
            refuse_other_loss(inner, outputs, targets, gradient)
            return targets
        if isinstance(inner, Gaussian):
            return _values(model, outputs, gradient)
    raise ValueError(f"the targets of {model.name} cannot be told from the loss's gradient: {FORWARD}")


def _labels(model: CrossEntropy | WeightedCrossEntropy, outputs: Tensor, gradient: Tensor) -> Tensor:
    """Class indices: a term's gradient is negative at its class alone, or nowhere where its probability rounds to 1."""
    dim = _classes(outputs, gradient, model.classes_first)
    f, g = widened(outputs).movedim(dim, -1), widened(gradient).movedim(dim, -1)
    is_term = (g != 0).any(-1)
    classes = torch.where((g < 0).any(-1), g.argmin(-1), f.argmax(-1))
    refuse_other_loss(model, f, classes, g * is_term[..., None], gradient.dtype)
    ignored = model.ignored if isinstance(model, WeightedCrossEntropy) else IGNORED
    return classes.masked_fill(~is_term, ignored)


def _classes(outputs: Tensor, gradient: Tensor, classes_first: bool) -> int:
    """The dimension of the classes, 1 or -1: along it the gradient of a softmax sums to zero."""
    if outputs.ndim < 3 or (outputs.shape[1] == outputs.shape[-1] and not classes_first):
        return -1
    if outputs.shape[1] == outputs.shape[-1]:
        return 1
    sums = [float(widened(gradient).sum(dim).abs().max()) for dim in (1, -1)]
    return 1 if sums[0] < sums[1] else -1


def _values(model: Likelihood, outputs: Tensor, gradient: Tensor) -> Tensor:
    """Real targets: the outputs less the gradient of each term's own loss, divided by its weight."""
    f = widened(outputs).detach()
    _, values = arranged(f, f, model)
    weight = model.weigh(values) if isinstance(model, Reduced) else 1.0
    return f - widened(gradient) * (int(model.valid(values).sum()) / weight)


def refuse_other_loss(
    model: Likelihood, outputs: Tensor, targets: Tensor, gradient: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Raise ValueError if the gradient is no common positive multiple of the residuals at its terms.

    ``dtype``: that in which the gradient came, whose rounding it has.
    """
    f, g = widened(outputs), widened(gradient)
    residual = model.residual(f, targets) * (g != 0).any(-1, keepdim=True)
    scale = (g * residual).sum() / residual.square().sum()
    digits = (_ROUNDING + f.abs().max()) * torch.finfo(torch.float32).eps  # many losses compute in float32
    rounding = torch.maximum(digits, digits.new_tensor(2 * torch.finfo(dtype or gradient.dtype).eps))
    if bool(g.any()) and not (scale > 0 and bool(((g - scale * residual).abs() <= rounding * scale).all())):
        raise ValueError(
            f"the gradient at the outputs is no multiple of that of {model.name} (class weights, smoothing, soft "
            f"targets, another loss?): give the criterion as loss=, or {FORWARD}"
        )
