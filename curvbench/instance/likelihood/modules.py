"""Torch's loss modules as likelihoods, each with its weights and its reduction."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from curvbench.instance.likelihood.base import Likelihood
from curvbench.instance.likelihood.diagonal import Bernoulli, Gaussian, NormalWithVariance
from curvbench.instance.likelihood.reduced import Reduced
from curvbench.instance.likelihood.weighted import WeightedCrossEntropy, terms_per_weight

_SHOWN = 8  # numbers of a tensor that a name shows


def of_module(loss: nn.Module) -> Likelihood:
    """The likelihood of a loss module of torch.

    Raises:
        ValueError: no likelihood is known for the module's class, which a subclass does not inherit, because it may
            compute anything; or the module does not reduce its loss to a number.
    """
    if type(loss) not in _READERS:
        raise ValueError(
            f"no curvature is known for the loss {type(loss).__name__}: take one of "
            f"{', '.join(f'nn.{known.__name__}' for known in _READERS)}, or give a Likelihood, or a function of one "
            "term's outputs and target"
        )
    if loss.reduction not in ("mean", "sum"):
        raise ValueError(f"the loss {_named(loss)} is no number: give it reduction='mean' or 'sum'")
    return _READERS[type(loss)](loss)


def _cross_entropy(loss: Any) -> Likelihood:
    name = _named(loss, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0)
    return _labelled(loss, WeightedCrossEntropy(name, loss.weight, loss.label_smoothing, loss.ignore_index))


def _nll(loss: Any) -> Likelihood:
    name = _named(loss, weight=None, ignore_index=-100, reduction="mean")
    return _labelled(loss, WeightedCrossEntropy(name, loss.weight, 0.0, loss.ignore_index, are_logarithms=True))


def _labelled(loss: Any, inner: WeightedCrossEntropy) -> Likelihood:
    if loss.reduction == "sum":
        return Reduced(inner, "sum over terms", partial(_terms, inner))
    if loss.weight is None:
        return inner
    return Reduced(inner, "mean over weighted terms", partial(terms_per_weight, loss.weight, loss.ignore_index))


def _mse(loss: Any) -> Likelihood:
    return _by_entry(loss, Gaussian(_named(loss, reduction="mean")), 2.0)  # the Gaussian's loss has the factor 1/2


def _bernoulli(loss: Any) -> Likelihood:
    name = _named(loss, weight=None, pos_weight=None, reduction="mean")
    return _by_entry(loss, Bernoulli(name, loss.weight, loss.pos_weight), 1.0)


def _normal(loss: Any) -> Likelihood:
    name = _named(loss, full=False, eps=1e-6, reduction="mean")
    return _by_entry(loss, NormalWithVariance(name, loss.eps, loss.full), 1.0)


def _by_entry(loss: Any, inner: Likelihood, factor: float) -> Likelihood:
    if loss.reduction == "sum":
        return Reduced(inner, "sum over entries", partial(_terms, inner, factor=factor))
    return Reduced(inner, "mean over entries", partial(_per_entry, factor))


def _terms(inner: Likelihood, targets: Tensor, factor: float = 1.0) -> float:
    """The weight of a term in a sum, because ``inner`` is a mean: the number of terms."""
    return factor * int(inner.valid(targets).sum())


def _per_entry(factor: float, targets: Tensor) -> float:
    """The weight of a term in a mean over all entries, because ``inner`` sums over the entries of a term."""
    return factor / targets.shape[-1]


def _named(loss: nn.Module, **defaults: Any) -> str:
    """The class of a loss with those settings that are not the ``defaults``."""
    given = {name: getattr(loss, name) for name in defaults}
    settings = [f"{name}={_shown(value)}" for name, value in given.items() if not _same(value, defaults[name])]
    return f"{type(loss).__name__}({', '.join(settings)})" if settings else type(loss).__name__


def _same(value: Any, default: Any) -> bool:
    return value is default or (not isinstance(value, Tensor) and value == default)


def _shown(value: Any) -> str:
    """A setting as text; a long tensor is told apart by a checksum of its numbers."""
    if not isinstance(value, Tensor):
        return str(value)
    numbers = value.flatten().double().cpu()
    if len(numbers) <= _SHOWN:
        return f"[{', '.join(f'{x:g}' for x in numbers.tolist())}]"
    return f"[{len(numbers)} numbers, {zlib.crc32(numbers.numpy().tobytes()):08x}]"


_READERS: Mapping[type[nn.Module], Callable[[Any], Likelihood]] = {
    nn.CrossEntropyLoss: _cross_entropy,
    nn.NLLLoss: _nll,
    nn.BCEWithLogitsLoss: _bernoulli,
    nn.MSELoss: _mse,
    nn.GaussianNLLLoss: _normal,
}
