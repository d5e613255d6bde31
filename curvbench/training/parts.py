"""Parts of a data set: reduced, held out, and placed on a device."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from curvbench.data.photos import Photos
from curvbench.spec import Dataset

StoredInputs = Tensor | Photos
"""The inputs of a data set: a tensor, or photos that are decoded when a batch needs them."""


def reduced(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The data set with a random share of its training part: at least one sample, chosen by the seed."""
    count = len(dataset.train_inputs)
    chosen = _drawn(count, seed)[: math.ceil(share * count)]
    if len(chosen) == count:
        return dataset
    return dataclasses.replace(
        dataset, train_inputs=dataset.train_inputs[chosen], train_targets=dataset.train_targets[chosen]
    )


def held_out(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, tuple[StoredInputs, Tensor] | None]:
    """The data set without a share of its training part, and the inputs and targets of that share.

    The seed chooses the share, which has at least one sample. Samples that ``batch`` draws with the same seed are held
    out only if the others do not suffice. None means that the share is 0.

    Raises:
        ValueError: nothing is left to train on.
    """
    count = len(dataset.train_inputs)
    held_count = math.ceil(share * count)
    if not held_count:
        return dataset, None
    if held_count == count:
        raise ValueError(f"valid={share:g} of {count} training samples leaves none to train on: choose a smaller share")
    trained, held_out_rows = _drawn(count, seed).split([count - held_count, held_count])
    inputs, targets = dataset.train_inputs, dataset.train_targets
    rest = dataclasses.replace(dataset, train_inputs=inputs[trained], train_targets=targets[trained])
    return rest, (inputs[held_out_rows], targets[held_out_rows])


def _drawn(count: int, seed: int) -> Tensor:
    """The training samples in random order: the first of them are measured, the last of them are held out."""
    return torch.randperm(count, device="cpu", generator=torch.Generator().manual_seed(seed))


def placed(
    inputs: StoredInputs, targets: Tensor, device: torch.device | str, dtype: torch.dtype
) -> tuple[StoredInputs, Tensor]:
    """Inputs and targets on the device: floating-point tensors in ``dtype``, labels and tokens in their own dtype."""
    moved = _to(inputs, device, dtype) if isinstance(inputs, Tensor) else inputs.to(device, dtype)
    return moved, _to(targets, device, dtype)


def _to(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def _read(inputs: StoredInputs) -> Tensor:
    return inputs if isinstance(inputs, Tensor) else inputs.read()
