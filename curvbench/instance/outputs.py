"""What a model returns as outputs of loss terms: which tensor it is, and which dimension holds the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvbench.instance.likelihood import Likelihood

Returned = Tensor | tuple[Tensor, ...]
Chooser = Callable[[Any], Any]

_REMEDY = "give outputs=, a function from what the model returns to the tensor of its outputs"


def chosen(returned: Any, choose: Chooser | None = None) -> Returned:
    """The tensor of outputs in what a model returns, or the tuple of several.

    ``choose`` picks it. Without ``choose`` it is the tensor itself, the only one of a tuple or list, or ``logits`` of
    an object or mapping.

    Raises:
        ValueError: it is none of these.
    """
    found = _logits(returned) if choose is None else choose(returned)
    if isinstance(found, tuple | list) and found and all(isinstance(value, Tensor) for value in found):
        found = tuple(found) if len(found) > 1 else found[0]
    elif not isinstance(found, Tensor):
        who = "the model" if choose is None else "outputs="
        raise ValueError(f"{who} returns {_described(found)} where a tensor is needed: {_REMEDY}")
    return found


def _logits(returned: Any) -> Any:
    """The logits of a model's return if it has a tensor of that name, else all that it returned."""
    found = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    return found if isinstance(found, Tensor) else returned


def _described(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"{kind} with the keys {', '.join(map(repr, value))}"
    if isinstance(value, tuple | list):
        return f"{kind} of {', '.join(type(x).__name__ for x in value) or 'nothing'}"
    return kind


@dataclass(frozen=True)
class Layout:
    """How a likelihood reads a model's outputs.

    ``reads``: the names of the tensors that the model returns. ``classes``: the dimension of the classes, 1 or -1.
    ``terms``: the number of dimensions of the loss terms, 1 for (N,) and 2 for (N, T). ``targets_like_outputs``:
    whether real targets have the shape of the outputs.
    """

    name: str
    reads: tuple[str, ...]
    classes: int
    terms: int
    targets_like_outputs: bool

    @classmethod
    def of(cls, outputs: Returned, targets: Tensor, model: Likelihood) -> Layout:
        """The layout of outputs as they come, which their shape and that of the targets decide."""
        first = outputs if isinstance(outputs, Tensor) else outputs[0]
        classes, terms = _classes(first, targets, model), 1 if first.ndim < 3 else 2
        return cls(model.name, model.reads, classes, terms, model.targets_like_outputs)

    def outputs(self, outputs: Returned) -> Tensor:
        """The outputs as (N, C) or (N, T, C), views wherever torch has them.

        A mean and a variance are joined to (N, ..., 2 C), where the variance expands to the mean.

        Raises:
            ValueError: the model returns another number of tensors than the likelihood reads.
        """
        tensors = (outputs,) if isinstance(outputs, Tensor) else outputs
        if len(tensors) != len(self.reads):
            came = f"{len(tensors)} tensors" if len(tensors) > 1 else "one tensor"
            raise ValueError(f"{self.name} reads ({', '.join(self.reads)}), the model returns {came}: {_REMEDY}")
        if len(tensors) == 1:
            return self._as_terms(tensors[0])
        return torch.cat([self._as_terms(_expanded(x, tensors[0])) for x in tensors], -1)

    def targets(self, targets: Tensor) -> Tensor:
        """The targets as integers (N,) or (N, T), or as real numbers with one dimension more.

        Real targets are rearranged as the outputs are, if they have the outputs' shape.
        """
        if not targets.is_floating_point():
            return targets.flatten(1) if targets.ndim > 2 else targets
        if self.targets_like_outputs:
            return self._as_terms(targets)
        return targets[..., None] if targets.ndim == self.terms else targets.flatten(min(self.terms, targets.ndim - 1))

    def _as_terms(self, values: Tensor) -> Tensor:
        """Values with a number per output as (N, C) or (N, T, C)."""
        if values.ndim < 2:
            return values[..., None] if values.ndim else values
        last = values if self.classes == -1 else values.movedim(self.classes, -1)
        return last.flatten(1, -2) if last.ndim > 3 else last


def arranged(outputs: Returned, targets: Tensor, model: Likelihood) -> tuple[Tensor, Tensor]:
    """Outputs and targets as they come in the layout of a likelihood: outputs (N, C) or (N, T, C), classes last.

    Outputs (N,) are (N, 1). Outputs (N, C, H, W) with classes (N, H, W) become (N, H W, C). Where dimension 1 and the
    last one both fit the targets, outputs of more than three dimensions have the classes in dimension 1, and those of
    three where the likelihood's ``classes_first`` puts them.
    """
    layout = Layout.of(outputs, targets, model)
    return layout.outputs(outputs), layout.targets(targets)


def _classes(outputs: Tensor, targets: Tensor, model: Likelihood) -> int:
    """The dimension of the classes, 1 or -1; also -1 if none fits, which ``check`` of the likelihood refuses."""
    if outputs.ndim < 3:
        return -1
    if targets.is_floating_point():
        return 1 if model.classes_first else -1
    fits_first = targets.shape == outputs[:, 0].shape
    fits_last = targets.shape == outputs.shape[:-1]
    means_first = model.classes_first or outputs.ndim > 3  # classes last come as (N, T, C) alone
    return 1 if fits_first and (means_first or not fits_last) else -1


def _expanded(values: Tensor, like: Tensor) -> Tensor:
    """A variance for each number of the mean, or for each but the last dimension, as torch takes it."""
    rows = values[..., None] if values.shape == like.shape[:-1] and values.ndim else values
    try:
        return rows.expand(like.shape)
    except RuntimeError as error:
        raise ValueError(
            f"a variance must expand to the mean, {tuple(like.shape)}, got {tuple(values.shape)}"
        ) from error
