"""Parts of a data set: reduced, held out, and placed on a device."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from curvbench.data.photos import Photos
from curvbench.spec import Dataset

Inputs = Tensor | Photos


def reduced(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The data with that share of its training part, at least one sample, drawn by the seed."""
    count = len(dataset.train_inputs)
    kept = _drawn(count, seed)[: math.ceil(share * count)]
    if len(kept) == count:
        return dataset
    return dataclasses.replace(
        dataset, train_inputs=dataset.train_inputs[kept], train_targets=dataset.train_targets[kept]
    )


def held_out(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, tuple[Inputs, Tensor] | None]:
    """The data without that share of its training part, and the share: inputs and targets; None for a share of 0.

    Drawn by the seed, at least one sample, and none of those that ``batch`` draws with it unless there are too few.

    Raises:
        ValueError: nothing is left to train on.
    """
    count = len(dataset.train_inputs)
    held = math.ceil(share * count)
    if not held:
        return dataset, None
    if held == count:
        raise ValueError(f"valid={share:g} of {count} training samples leaves none to train on: choose a smaller share")
    kept, out = _drawn(count, seed).split([count - held, held])
    inputs, targets = dataset.train_inputs, dataset.train_targets
    rest = dataclasses.replace(dataset, train_inputs=inputs[kept], train_targets=targets[kept])
    return rest, (inputs[out], targets[out])


def _drawn(count: int, seed: int) -> Tensor:
    """The training samples in random order: the first are measured, the last held out."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def placed(inputs: Inputs, targets: Tensor, device: torch.device | str, dtype: torch.dtype) -> tuple[Inputs, Tensor]:
    """Both on the device; tensors of floats come in ``dtype``, others (labels, tokens) as they are."""
    there = _to(inputs, device, dtype) if isinstance(inputs, Tensor) else inputs.to(device, dtype)
    return there, _to(targets, device, dtype)


def _to(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def _read(inputs: Inputs) -> Tensor:
    return inputs if isinstance(inputs, Tensor) else inputs.read()
