"""The shapes of a model that is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from curvbench.instance import Instance
from curvbench.meters.flops import FlopMeter
from curvbench.prediction.layout import Shape, Shapes
from curvbench.prediction.passes import passes
from curvbench.spec import Layer


def shapes_of(instance: Instance, name: str = "") -> Shapes:
    """The shapes of an instance: its blocks, and two passes that are counted for what is no layer.

    Lookups come first, because a pass begins with them; weights and vectors follow in the order of the blocks.
    """
    layers = sorted(instance.layers, key=lambda layer: layer.kind != "lookup")
    listed = tuple(shape for layer in layers for shape in _shapes(layer, instance))
    loss = "cross_entropy" if instance.likelihood.rank(instance.classes) < instance.classes else "gaussian"
    bare = Shapes(
        listed,
        samples=instance.samples,
        terms=instance.terms_per_sample,
        outputs=instance.classes,
        loss=loss,
        forward=0.0,
        backward=0.0,
        source=f"traced on a batch of {instance.samples}",
        name=name or type(instance.model).__name__,
    )
    return _with_sums(bare, instance)


def _with_sums(bare: Shapes, instance: Instance) -> Shapes:
    """The shapes with the FLOPs of a forward and a backward pass that no product with a weight explains."""
    with FlopMeter() as forward:
        instance.outputs()
    with FlopMeter() as both:
        instance.gradients()
    known, N = passes(bare), instance.samples
    backward = both.total - forward.total - (known.inputs + known.parameters)
    return replace(bare, forward=max(forward.total - known.forward, 0.0) / N, backward=max(backward, 0.0) / N)


def _shapes(layer: Layer, instance: Instance) -> Iterator[Shape]:
    if layer.kind == "vector":
        yield _vector(layer, instance)
        return
    for role in layer.roles or (layer,):
        yield _role(role, layer, instance)


def _vector(layer: Layer, instance: Instance) -> Shape:
    sides = instance.parameters[layer.parameters[0]].shape
    if layer.inputs > 1:
        return Shape(layer.name, "norm", 1, layer.outputs, bias=True)
    if len(sides) > 1 and sides.numel() == layer.size:
        return Shape(layer.name, "vector", layer.size // sides[0], sides[0])
    return Shape(layer.name, "vector", 1, layer.size)


def _role(role: Layer, layer: Layer, instance: Instance) -> Shape:
    gradient = instance.plan.shapes[role.name][1]
    positions = gradient.numel() // (role.groups * role.outputs)
    is_first = role is (layer.roles or (layer,))[0]
    name, tied_to = (layer.name, "") if is_first else (role.name, layer.name)
    if role.kind == "lookup":
        return Shape(name, "embedding", role.inputs, role.outputs, positions=positions, tied_to=tied_to)
    width = role.inputs - role.bias
    window = role.kernel[0] * role.kernel[1]
    kernel: tuple[int, ...] = ()
    if role.kind in ("conv1d", "conv2d", "matrix") and width % window == 0:
        kernel = {"conv1d": role.kernel[1:], "conv2d": role.kernel}.get(role.kind, (1, *role.kernel))
    return Shape(
        name,
        "conv" if kernel else "linear",
        role.groups * width // (window if kernel else 1),
        role.groups * role.outputs,
        kernel,
        max(role.stride) if kernel else 1,
        max(role.dilation) if kernel else 1,
        positions,
        role.groups,
        role.bias,
        tied_to=tied_to,
    )
