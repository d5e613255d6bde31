"""FLOPs of passes through a network: forward, the gradient of a step, and backward passes for scores."""

from __future__ import annotations

from dataclasses import dataclass

from curvbench.prediction.layout import Shape, Shapes

UPDATE = 4  # FLOPs per parameter of an SGD step with momentum
_LOSS = 10  # FLOPs per output: softmax, its logarithm and their derivatives


@dataclass(frozen=True)
class Passes:
    """FLOPs of one pass over the whole batch.

    ``forward``: from inputs to outputs. ``inputs``: from outputs back to the output of every layer, which is what one
    score pass takes. ``parameters``: from the outputs of the layers to the gradients of their parameters. ``update``:
    the update of SGD with momentum. ``between``: the part of ``inputs`` that is no product with a weight.
    """

    forward: float
    inputs: float
    parameters: float
    update: float
    between: float

    @property
    def gradient(self) -> float:
        """A step of SGD with momentum: forward, backward, and the update itself."""
        return self.forward + self.inputs + self.parameters + self.update


def passes(shapes: Shapes) -> Passes:
    """The passes of a network over its batch."""
    of_weights = sum(layer.product * layer.repeat for layer in shapes.layers)
    biases = sum(float(la.positions * la.outputs * la.repeat) for la in shapes.layers if la.is_product and la.bias)
    rows = sum(float(la.positions * la.outputs * la.repeat) for la in shapes.layers if la.kind == "embedding")
    forward, inputs, own = _sums(shapes)
    loss = _LOSS * shapes.terms * shapes.classes
    N = shapes.samples
    return Passes(
        N * (of_weights + forward + loss / 2),
        N * (of_weights - _unneeded(shapes.layers) + inputs + loss / 2),
        N * (of_weights + biases + rows + own),
        float(UPDATE * shapes.parameters),
        N * inputs,
    )


def _sums(shapes: Shapes) -> tuple[float, float, float]:
    """FLOPs per sample of all that is no product: counted ones, or those of the norms and attentions."""
    listed = [tuple(layer.repeat * count for count in layer.sums) for layer in shapes.layers]
    forward, inputs, own = (sum(counts) for counts in zip(*listed, strict=True))
    if shapes.forward is None:
        return forward, inputs, own
    return shapes.forward, shapes.backward or 0.0, 0.0


def _unneeded(layers: tuple[Shape, ...]) -> float:
    """The product for the gradient of the network's own inputs, which nobody asks for."""
    first = next((layer for layer in layers if layer.kind != "attention"), None)
    return first.product if first is not None else 0.0
