"""The first forward pass of an instance: which layers it covers, and what holds for all later passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvbench.instance.tape import Recorder
from curvbench.instance.verification import Seen
from curvbench.spec.geometry import Layer, LayerSize


@dataclass(frozen=True, eq=False)
class Inspection:
    """Everything that one forward pass shows of a model and a batch.

    ``shapes``: per layer the shapes of one sample's input and output. ``cloned_inputs``: names of the layers whose
    input the model overwrites. ``draws_random_numbers``: whether the model draws from a random generator.
    ``enters_autocast``: whether the model enters autocast in its own ``forward``.
    """

    seen: Seen
    layers: tuple[Layer, ...]
    sizes: dict[str, LayerSize]
    shapes: dict[str, tuple[torch.Size, torch.Size]]
    cloned_inputs: frozenset[str]
    draws_random_numbers: bool
    enters_autocast: bool

    @property
    def classes(self) -> int:
        """Network outputs of one loss term, C."""
        return self.seen.outputs.shape[-1]

    @property
    def terms_per_sample(self) -> int:
        """Loss terms of one sample, T, the ignored ones included."""
        return self.seen.outputs[0].numel() // self.classes

    @classmethod
    def of(
        cls, covered: Mapping[str, Layer], recorder: Recorder, outputs: Tensor, draws: bool, autocast: bool
    ) -> Inspection:
        """The inspection from what a pass recorded of the ``covered`` layers."""
        seen = Seen(outputs, {name: recorder.inputs[name] for name in covered})
        shapes = {name: (recorder.inputs[name].shape[1:], recorder.shapes[name][1:]) for name in covered}
        sizes = {name: _size(layer, shapes[name][1]) for name, layer in covered.items()}
        return cls(seen, _placed(covered), sizes, shapes, frozenset(recorder.overwritten()), draws, autocast)


def _placed(covered: Mapping[str, Layer]) -> tuple[Layer, ...]:
    """The layers with their places in the parameter vector, one after the other."""
    layers: list[Layer] = []
    start = 0
    for layer in covered.values():
        layers.append(replace(layer, start=start))
        start += layer.size
    return tuple(layers)


def _size(layer: Layer, output: torch.Size) -> LayerSize:
    """The numbers that cost models need of a layer; ``output`` is the shape of one sample's output."""
    positions = output.numel() // (layer.groups * layer.outputs)
    kernel = 0 if layer.kind == "linear" else layer.kernel[0] * layer.kernel[1]
    return LayerSize(layer.groups, layer.outputs, layer.inputs, positions, kernel)
