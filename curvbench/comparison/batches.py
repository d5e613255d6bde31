"""Batches as people have them: tensors, numpy arrays, mappings, or a loader that gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curvbench.cells.given import Batch
from curvbench.instance.contents import mapped
from curvbench.instance.likelihood import IGNORED

FIRST = 3  # batches of a loader that are measured
_SHIFTING = ("ForCausalLM", "LMHeadModel")  # models that hold the outputs at a token against the label of the next


def batches_of(model: nn.Module, inputs: Any, targets: Any = None) -> tuple[Batch, ...]:
    """The batches that are measured: the one that is given, or the first three of a loader.

    A loader gives pairs (inputs, targets), or mappings with ``labels``. Numbers of numpy take the dtype of the model.
    The labels of a causal language model of transformers are shifted by one token, as that model does.

    Raises:
        ValueError: targets are missing, or the loader is empty or gives something else.
    """
    if targets is not None and isinstance(inputs, torch.utils.data.DataLoader):
        raise ValueError("the targets come from the loader: leave them out")
    if targets is not None:
        return (_placed(model, inputs, targets),)
    if isinstance(inputs, Tensor | np.ndarray):
        raise ValueError("targets are missing: give the targets of these inputs, or a loader of (inputs, targets)")
    if isinstance(inputs, Mapping):
        return (_placed(model, *_pair(model, inputs)),)
    if not isinstance(inputs, Iterable):
        raise ValueError(f"inputs must be tensors, numpy arrays or a loader of batches, got {type(inputs).__name__}")
    found = tuple(_placed(model, *_pair(model, item)) for item in islice(inputs, FIRST))
    if not found:
        raise ValueError("the loader gives no batch")
    return found


def _pair(model: nn.Module, item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping) and "labels" in item:
        labels = torch.as_tensor(item["labels"])
        inputs = {name: value for name, value in item.items() if name != "labels"}
        return inputs, _shifted(labels) if type(model).__name__.endswith(_SHIFTING) else labels
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    what = f"a mapping with {', '.join(map(repr, item))}" if isinstance(item, Mapping) else type(item).__name__
    raise ValueError(f"a batch must be a pair (inputs, targets) or a mapping with 'labels', got {what}")


def _shifted(labels: Tensor) -> Tensor:
    """The label of the next token at every token (N, T); the last token has none."""
    return torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], 1)


def _placed(model: nn.Module, inputs: Any, targets: Any) -> Batch:
    """Tensors on the model's device; labels in int64, and numbers of numpy in the model's dtype."""
    some = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros((), device="cpu"))

    def tensor(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
            value = value.to(some.dtype) if value.is_floating_point() else value
        return value.to(some.device) if isinstance(value, Tensor) else value

    if not isinstance(targets, Tensor | np.ndarray):
        targets = np.asarray(targets)
        if targets.dtype.kind not in "biuf":
            raise ValueError(f"targets must be numbers, got an array of {targets.dtype}")
    labels = tensor(targets)
    return mapped(inputs, tensor), labels if labels.is_floating_point() else labels.long()
