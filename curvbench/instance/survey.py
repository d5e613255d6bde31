"""The first passes of an instance: which uses its parameters have, whose rows these uses read, and the blocks.

A use whose rows several samples share (positions, relative biases) is vetoed: the next pass takes its result for a
computed weight, whose own use then has a row for every sample. What never gets rows of single samples, and what an
unknown call reads, is left to plain autograd.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from curvbench.instance.placing import role_gradient, role_inputs
from curvbench.instance.refusals import deep_rounding
from curvbench.spec.geometry import Layer, LayerSize
from curvbench.uses.blocks import Builder, Plan
from curvbench.uses.calls import Call, Computed, Key, View
from curvbench.uses.owners import Layout, first_order, layout, random_cotangent, sample_weights
from curvbench.uses.tracer import Tracer

VETOES = 6  # rounds of tracing in which shared rows become computed weights; models need 3 at most
_FARTHEST = 0.05  # of the distance between two samples' weights: a larger rounding could hide another owner


class Traced(NamedTuple):
    """One traced pass: what was noted, the outputs (N, ..., C), and the parameters that it read.

    ``gradients``: at calls, for the ``cotangent``, so that the verification needs no pass of its own.
    """

    tracer: Tracer
    outputs: Tensor
    leaves: Mapping[str, Tensor]
    cotangent: Tensor | None = None
    gradients: Mapping[Key, Tensor] = {}


class Traceable(Protocol):
    """What a survey needs of an instance."""

    samples: int

    def trace(self, vetoed: Collection[Key], cloned: Collection[Key], uncut: Collection[str]) -> Traced:
        """A forward pass over the batch in which all trained parameters are followed."""


def survey(instance: Traceable, uncut: Collection[str] = ()) -> tuple[Plan, Traced]:
    """The plan of a model on a batch, and its last pass; ``uncut``: parameters that are left to plain autograd."""
    vetoed, cloned, uncut, rounds = frozenset[Key](), frozenset[Key](), frozenset(uncut), 0
    is_mixed = False
    while True:
        traced = instance.trace(vetoed, cloned, uncut)
        if traced.tracer.differentiates and uncut < traced.leaves.keys():
            uncut = frozenset(traced.leaves)
            continue
        if overwritten := traced.tracer.overwritten() - cloned:
            cloned |= overwritten
            continue
        traced, layouts, shared, alive = _owned(traced, instance.samples)
        is_mixed |= any(first_order(c, instance.samples) is not None for c in traced.tracer.calls if c.key in shared)
        if alive - uncut:
            uncut |= alive
        elif shared and rounds < VETOES:
            vetoed, rounds = vetoed | shared, rounds + 1
        elif shared:
            uncut |= {
                name for call in traced.tracer.calls if call.key in shared for name in _behind(call, traced.leaves)
            }
        else:
            empty = Plan((), {}, vetoed, cloned, uncut, tuple(sorted(alive)), is_mixed=is_mixed)
            empty = replace(empty, events=tuple(traced.tracer.events), reorders=traced.tracer.reorders)
            return _planned(traced, layouts, empty, instance.samples)


def _owned(traced: Traced, samples: int) -> tuple[Traced, dict[Key, Layout], frozenset[Key], frozenset[str]]:
    """The pass with gradients, all layouts, the calls with shared rows, and parameters that something unknown reads."""
    outputs, calls, names = traced.outputs, traced.tracer.calls, list(traced.leaves)
    if not outputs.requires_grad:
        return traced, {}, frozenset(), frozenset()
    weights = sample_weights(samples).to(outputs.device)
    u = random_cotangent(outputs)
    ends: Any = [call.edge for call in calls] + [traced.leaves[name] for name in names]
    along = weights.to(outputs).reshape(-1, *[1] * (outputs.ndim - 1))

    def pulled(cotangent: Tensor) -> Sequence[Tensor | None]:
        return torch.autograd.grad(outputs, ends, cotangent, retain_graph=True, allow_unused=True)

    plain, weighted, tripled = pulled(u), pulled(u * along), list[Tensor | None]()
    alive = frozenset(name for name, g in zip(names, plain[len(calls) :], strict=True) if g is not None)
    layouts: dict[Key, Layout] = {}
    shared = set()
    for i, (call, a, b) in enumerate(zip(calls, plain, weighted, strict=False)):
        found: Layout | None = None
        if a is None or b is None:
            found = first_order(call, samples)
        elif (found := layout(call, a, b, weights, deep_rounding(a.dtype))) is None:
            tripled = tripled or list(pulled(3 * u))
            found = layout(call, a, b, weights, _tolerance(a, tripled[i], weights))
        if found is not None:
            layouts[call.key] = found
        elif a is not None:
            shared.add(call.key)
    gradients = {call.key: a for call, a in zip(calls, plain, strict=False) if a is not None}
    return traced._replace(cotangent=u, gradients=gradients), layouts, frozenset(shared), alive


def _tolerance(plain: Tensor, tripled: Tensor | None, weights: Tensor) -> float:
    """The tolerance that the gradient for a threefold cotangent measures, because a model may round inside."""
    assert tripled is not None, "a call that has a gradient has it for every cotangent"
    largest = float(tripled.abs().max()) if tripled.numel() else 0.0
    measured = float((tripled - 3 * plain).abs().max()) / largest if largest else 0.0
    return min(max(deep_rounding(plain.dtype), 10 * measured), _FARTHEST / len(weights))


def _behind(call: Call, leaves: Mapping[str, Tensor]) -> list[str]:
    """The parameters that a call reads, directly or through a computed weight."""
    if isinstance(call.key.weight, View):
        return [call.key.weight.name]
    assert call.tensor is not None
    ends, ones = list(leaves.values()), torch.ones_like(call.tensor)
    gradients = torch.autograd.grad(call.tensor, ends, ones, retain_graph=True, allow_unused=True)
    return [name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None]


def _planned(traced: Traced, layouts: Mapping[Key, Layout], plan: Plan, samples: int) -> tuple[Plan, Traced]:
    calls = traced.tracer.calls
    computed = {
        c.key: _behind(c, traced.leaves) for c in calls if isinstance(c.key.weight, Computed) and c.key in layouts
    }
    builder = Builder(traced.leaves, calls, layouts)
    layers, uses = builder.build(computed, plan.generic)
    plan = replace(plan, layers=tuple(layers), uses=uses, formed=frozenset(builder.formed))
    return replace(plan, shapes=_shapes(plan, calls, traced.outputs, samples)), traced


def roles_of(layers: Sequence[Layer]) -> dict[str, Layer]:
    """The roles of some blocks by name; a block that is not tied is its own role."""
    return {role.name: role for layer in layers for role in (layer.roles or (layer,))}


def _shapes(
    plan: Plan, calls: Sequence[Call], outputs: Tensor, samples: int
) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Per role the shapes of one sample's input and gradient."""
    shapes = {}
    for name, role in roles_of(plan.layers).items():
        if role.kind == "vector":
            shapes[name] = torch.Size((1,)), torch.Size((1, role.outputs, role.inputs))
            continue
        used = [
            (call, use) for call in calls if (use := plan.uses.get(call.key)) and use.role == name and not use.formed
        ]
        gradients = [outputs.new_zeros(()).expand(call.shape) for call, _ in used]
        x, g = role_inputs(role, used, samples, outputs), role_gradient(role, used, gradients, samples)
        shapes[name] = x.shape[1:], g.shape[1:]
    return shapes


def sizes_of(plan: Plan) -> dict[str, LayerSize]:
    """Per block the numbers that cost models need."""
    return {layer.name: _size(layer, plan) for layer in plan.layers}


def _size(layer: Layer, plan: Plan) -> LayerSize:
    positions = 0
    for role in layer.roles or (layer,):
        shape = plan.shapes[role.name][1]
        positions += shape.numel() // (role.groups * role.outputs)
    kernel = layer.kernel[0] * layer.kernel[1] if layer.kind in ("conv1d", "conv2d", "matrix") else 0
    return LayerSize(layer.groups, layer.outputs, layer.inputs, positions, kernel)
