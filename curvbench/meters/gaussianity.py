"""How far the inputs of layers are from a Gaussian and from its positive part (LNGD's Figure 6)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor

from curvbench.instance import Instance
from curvbench.parts.silence import is_product
from curvbench.spec import Layer, Row, Status

COORDINATES = 256  # of a layer's input, evenly spaced: their median moves by less than the sampling error of each
PART = 32  # samples of a pass: the pass keeps the inputs of all layers
NETWORK = "network"
METRICS = ("inputs.gaussian", "inputs.positive", "inputs.norm")


def input_rows(instance: Instance) -> Iterator[Row]:
    """Kolmogorov distances of the inputs of every layer, over the samples, and their medians over the layers.

    ``inputs.gaussian`` and ``inputs.positive`` are medians over coordinates that are not constant, of
    ``from_gaussian`` and ``from_positive_part``; an input with negative values has no positive part to compare with.
    ``inputs.norm`` is the distance of the Euclidean norm from a Gaussian. Embeddings have no real inputs.
    """
    layers = [layer for layer in instance.layers if is_product(layer) and layer.kind != "lookup"]
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for layer, (values, norms) in zip(layers, _inputs(instance, layers), strict=True):
        for metric, distance in zip(METRICS, _distances(values, norms), strict=True):
            yield _row(metric, distance, layer.name)
            found[metric] += [] if math.isnan(distance) else [distance]
    for metric, distances in found.items():
        middle = median(distances) if distances else math.nan
        yield _row(metric, middle, NETWORK, f"median over {len(distances)} layers")


def from_gaussian(values: Tensor) -> Tensor:
    """Kolmogorov distances (K,) of samples (N, K) from the Gaussians of their means and variances."""
    spread, mean = torch.std_mean(values, 0, correction=0)
    return _distance(values, mean, spread, from_zero=False)


def from_positive_part(values: Tensor) -> Tensor:
    """Kolmogorov distances (K,) of samples (N, K), none negative, from max(0, Z) with a Gaussian Z.

    Z is the Gaussian for which max(0, Z) has the samples' mean and their share of zeros: with r = mean Z / std Z, the
    share is Phi(-r) and the mean is std Z (phi(r) + r Phi(r)). Without zeros, Z has the samples' mean and variance.
    """
    spread, mean = torch.std_mean(values, 0, correction=0)
    zeros = (values == 0).to(values.dtype).mean(0)
    ratio = -torch.special.ndtri(zeros)
    density = (-ratio.square() / 2).exp() / math.sqrt(2 * math.pi)
    scale = mean / (density + ratio * torch.special.ndtr(ratio))
    has_zeros = zeros > 0
    centre = torch.where(has_zeros, ratio * scale, mean)
    return _distance(values, centre, torch.where(has_zeros, scale, spread), from_zero=True)


def _distance(values: Tensor, centre: Tensor, scale: Tensor, from_zero: bool) -> Tensor:
    """The largest distance of the samples' distribution from a Gaussian's, on both sides of every sample.

    ``from_zero``: the distribution is that of max(0, Z), which is 0 left of 0.
    """
    ordered = values.sort(0).values
    reached = torch.special.ndtr((ordered - centre) / scale)
    before = torch.where(ordered <= 0, 0.0, reached) if from_zero else reached
    shares = torch.arange(len(values) + 1, dtype=values.dtype, device=values.device)[:, None] / len(values)
    return torch.maximum(shares[1:] - reached, before - shares[:-1]).amax(0)


def _distances(values: Tensor, norms: Tensor) -> tuple[float, float, float]:
    """The distances of one layer; NaN where there is nothing to compare."""
    varied = values[:, values.amax(0) > values.amin(0)]
    if not varied.numel():
        return math.nan, math.nan, math.nan
    positive = math.nan if (varied < 0).any() else float(from_positive_part(varied).median())
    is_varied = bool(norms.amax() > norms.amin())
    return float(from_gaussian(varied).median()), positive, float(from_gaussian(norms)) if is_varied else math.nan


def _inputs(instance: Instance, layers: list[Layer]) -> list[tuple[Tensor, Tensor]]:
    """Per layer some coordinates (N, K) of its input and the Euclidean norms (N, 1), in float64."""
    starts = range(0, instance.samples, instance.samples if instance.coupled else PART)
    names = [layer.name for layer in layers]
    read: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
    for start in starts:
        part = instance if instance.coupled else instance.part(slice(start, start + PART))
        tape = part.tape(names)
        for parts, name in zip(read, names, strict=True):
            flat = tape.inputs[name].detach().flatten(1).double()
            step = max(1, flat.shape[1] // COORDINATES)
            parts.append((flat[:, ::step][:, :COORDINATES].clone(), flat.norm(dim=1, keepdim=True)))
    return [(torch.cat([v for v, _ in parts]), torch.cat([n for _, n in parts])) for parts in read]


def _row(metric: str, distance: float, scope: str, method: str = "") -> Row:
    if math.isnan(distance):
        reason = "the inputs have negative values" if metric == "inputs.positive" else "the inputs do not vary"
        return Row(metric, scope=scope, status=Status.SKIPPED, reason=reason)
    return Row(metric, distance, scope, method=method)
