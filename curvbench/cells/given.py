"""A problem that a user gives as it is: a model, its batches and its loss, instead of a recipe for them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from curvbench.instance.contents import leaves, mapped
from curvbench.instance.inputs import Inputs
from curvbench.instance.likelihood import Loss, likelihood
from curvbench.spec import Dataset, Problem

Batch = tuple[Inputs, Tensor]


class Held(NamedTuple):
    """What a given problem holds; ``options`` are other arguments of ``Instance``."""

    model: nn.Module
    batches: tuple[Batch, ...]
    loss: Loss
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Given(Problem):
    """A model with batches of its own; ``Given.of`` makes it.

    The number of a cell's seed is that of its batch. Copies of the problem in other processes carry model and batches.

    ``title``: its name in tables. ``content``: a hash of the parameters, buffers, inputs, targets and loss.
    """

    title: str = "model"
    content: str = ""
    samples: int = 1
    epochs: int = 0
    mc_samples: int = 0
    held: ClassVar[Held]  # of each object, but no field, because its content stands for it in labels and identities

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Sequence[Batch],
        loss: Loss,
        title: str = "",
        mc_samples: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> Given:
        """A problem of a copy of a model, in evaluation mode, and of at least one batch.

        ``title``: its name in tables, by default the model's class. ``options``: other arguments of ``Instance``.
        """
        options, model = options or {}, copy.deepcopy(model).eval()
        parts = [repr(model), tensor_hash(dict(model.state_dict())), *map(tensor_hash, batches)]
        parts += [described(loss), repr(options)]
        content = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
        problem = cls(title or type(model).__name__, content, len(batches[0][1]), mc_samples=mc_samples)
        object.__setattr__(problem, "held", Held(model, tuple(batches), loss, options))
        return problem

    @property
    def loss(self) -> Any:
        """The loss that was given."""
        return self.held.loss

    @property
    def name(self) -> str:
        return self.title

    @property
    def arguments(self) -> str:
        draws = f"mc_samples={self.mc_samples}," if self.mc_samples else ""
        return f"{draws}samples={self.samples},content={self.content}"

    def model(self) -> nn.Module:
        """A copy of the model that was given."""
        return copy.deepcopy(self.held.model)

    def data(self, root: Path | None) -> Dataset:
        """Nothing: a given problem has batches, and no data to draw from."""
        raise NotImplementedError("a given problem is measured on its batches and trains nothing")

    def batch(self, seed: int, device: str) -> Batch:
        """Inputs and targets of the batch with the number ``seed``."""
        inputs, targets = self.held.batches[seed]
        return mapped(inputs, lambda x: x.to(device) if isinstance(x, Tensor) else x), targets.to(device)


def tensor_hash(values: Any) -> str:
    """A hash of the tensors inside tuples, lists and mappings: names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name, value in leaves(values):
        digest.update(f"{name}:".encode())
        digest.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return f"{tensor.dtype}{tuple(tensor.shape)}".encode() + flat.view(torch.uint8).numpy().tobytes()


def described(loss: Loss) -> str:
    """A text that tells one loss from another."""
    return likelihood(loss).name + (tensor_hash(dict(loss.state_dict())) if isinstance(loss, nn.Module) else "")
