"""What a case of the zoo is, and the few parts that all its models are built of."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo import oracle


class Problem(NamedTuple):
    """The arguments of an instance."""

    model: nn.Module
    inputs: Any
    targets: Tensor
    loss: str
    options: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Case:
    """A model with data, and what is expected of it.

    ``left_out``: parameters that may be left out, because the outputs do not depend on them. ``coupled``: whether a
    parameter acts through one sample on another sample's outputs; None where samples share inputs alone, so that
    either answer will do. ``tolerance``: of the relative difference to the oracle, larger where the model rounds to
    float32 inside or its gradient is ill-conditioned.
    """

    name: str
    make: Callable[[], Problem]
    left_out: frozenset[str] = field(default_factory=frozenset)
    coupled: bool | None = False
    tolerance: float = 1e-12

    def build(self) -> Problem:
        """The same numbers at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(self.name.encode()))
            return self.make()


class Net(nn.Module):
    """A function of the module and its arguments, with modules and parameters (given as tensors) by name."""

    def __init__(self, function: Callable[..., Tensor], **parts: Tensor | nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(self, *args, **kwargs)


def then(function: Callable[[Tensor], Tensor]) -> Net:
    """A function of one tensor as a layer."""
    return Net(lambda _, x: function(x))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape)


def stirred(model: nn.Module) -> nn.Module:
    """The model in float64 and evaluation mode, away from zeros, ones and statistics of an initialisation."""
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.1 * torch.randn_like(b))
            if name.endswith("running_var"):
                b.copy_(torch.rand_like(b) + 0.5)
    return model


def arguments(inputs: tuple[Any, ...]) -> Any:
    """The tensor that is the only argument, or the tuple of arguments."""
    return inputs[0] if len(inputs) == 1 and isinstance(inputs[0], Tensor) else inputs


def classified(model: nn.Module, *inputs: Any, **named: Any) -> Problem:
    """Cross entropy at random labels; of several tokens the first sample's first is ignored."""
    model, given = stirred(model), named or arguments(inputs)
    outputs = oracle.run(model, given)
    targets = integers(outputs.shape[-1], *outputs.shape[:-1])
    if targets.ndim == 2:
        targets[0, 0] = oracle.IGNORED
    return Problem(model, given, targets, "cross_entropy")


def regressed(model: nn.Module, *inputs: Any) -> Problem:
    """The Gaussian loss at random targets."""
    model, given = stirred(model), arguments(inputs)
    return Problem(model, given, torch.randn_like(oracle.run(model, given)), "gaussian")


def classifier(function: Callable[..., Tensor], *inputs: Any, **parts: Tensor | nn.Module) -> Problem:
    """``classified`` of a ``Net``."""
    return classified(Net(function, **parts), *inputs)


def regressor(function: Callable[..., Tensor], *inputs: Any, **parts: Tensor | nn.Module) -> Problem:
    """``regressed`` of a ``Net``."""
    return regressed(Net(function, **parts), *inputs)


def three(function: Callable[..., Tensor], *inputs: Tensor) -> Problem:
    """``classified`` of a function of three layers, for inputs of width 4."""
    return classifier(function, *inputs, first=nn.Linear(4, 5), inner=nn.Linear(5, 5), last=nn.Linear(5, 3))
