"""A parameter vector and the named tensors that it holds: block after block, each the columns of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from curvbench.instance.placing import as_real
from curvbench.numerics import widened
from curvbench.spec.geometry import Layer, Piece


def packed(layers: Sequence[Layer], parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    """Tensors shaped like the parameters as a vector (P,); raises ValueError if one is missing or has another shape."""
    parts = []
    for layer in layers:
        columns = [
            _entries(as_real(_fetch(tensors, piece.parameter, parameters[piece.parameter].shape)), piece, layer)
            for piece in layer.pieces
        ]
        parts.append((columns[0] if len(columns) == 1 else torch.cat(columns, dim=2)).flatten())
    return torch.cat(parts)


def unpacked(layers: Sequence[Layer], parameters: Mapping[str, Tensor], vector: Tensor) -> dict[str, Tensor]:
    """A vector (P,) as tensors shaped like the parameters."""
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        widths = [piece.columns for piece in layer.pieces]
        columns = vector[layer.slice].reshape(layer.shape).split(widths, dim=2)
        for piece, part in zip(layer.pieces, columns, strict=True):
            shape = parameters[piece.parameter].shape
            if parameters[piece.parameter].is_complex():
                tensors[piece.parameter] = torch.view_as_complex(part.reshape(*shape, 2).clone())
            elif _is_whole(piece, part, shape):
                tensors[piece.parameter] = part.reshape(shape)
            else:
                whole = tensors.setdefault(piece.parameter, vector.new_zeros(shape))
                _entries(whole, piece, layer).copy_(part)
    return tensors


def _fetch(tensors: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    if name not in tensors or tensors[name].shape != shape:
        came = tuple(tensors[name].shape) if name in tensors else "nothing"
        raise ValueError(f"pack needs {name!r} of shape {tuple(shape)}, got {came}")
    return widened(tensors[name])


def _entries(tensor: Tensor, piece: Piece, layer: Layer) -> Tensor:
    """The columns of a block that a parameter holds, (G, M, columns): a view if the tensor is contiguous."""
    shape = (layer.groups, layer.outputs, piece.columns)
    whole = tensor.contiguous()
    return whole.as_strided(shape, piece.strides, whole.storage_offset() + piece.offset)


def _is_whole(piece: Piece, part: Tensor, shape: torch.Size) -> bool:
    """Whether the columns are all entries of the parameter in their own order."""
    _, M, D = part.shape
    return (
        part.numel() == shape.numel() and piece.offset == 0 and piece.strides in ((0, D, 1), (0, 1, 0), (M * D, D, 1))
    )


def as_parameters(leaves: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leaves in the form in which the model reads them: complex parameters from their real and imaginary parts."""
    return {n: torch.view_as_complex(leaf) if parameters[n].is_complex() else leaf for n, leaf in leaves.items()}
