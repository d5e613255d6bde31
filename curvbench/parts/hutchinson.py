"""Diagonals from products with random signs: z * (A z) has the diagonal of A as its mean (Hutchinson 1990)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from curvbench.instance import Instance

Curvature = Literal["fisher", "hessian"]

_STRIDE = 2**20  # draws per seed: seeds share no draws as long as no training takes more


def signs(instance: Instance, seed: int, number: int) -> Tensor:
    """A vector (P,) of random signs; every number of a draw has its own."""
    generator = torch.Generator().manual_seed((seed * _STRIDE + number) % 2**63)
    drawn = torch.randint(2, (instance.size,), device="cpu", generator=generator)
    return (2 * drawn - 1).to(instance.device, instance.dtype)


def diagonal_draw(instance: Instance, curvature: Curvature, seed: int, number: int) -> Tensor:
    """One draw z * (A z), (P,), of the diagonal of the type-2 Fisher or of the Hessian of the mean loss."""
    z = signs(instance, seed, number)
    return z * product(instance, curvature, z)


def product(instance: Instance, curvature: Curvature, vector: Tensor) -> Tensor:
    """The product of the type-2 Fisher, or of the Hessian of the mean loss, with a vector (P,)."""
    return (instance.fisher_product if curvature == "fisher" else instance.hessian_product)(vector)


def no_product(instance: Instance, curvature: Curvature) -> str | None:
    """A one-line reason why the model has no such products; None means that it has."""
    try:
        product(instance, curvature, torch.zeros(instance.size, dtype=instance.dtype, device=instance.device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        what = "has no forward-mode derivative" if curvature == "fisher" else "cannot be differentiated twice"
        return f"the model {what}: {str(error).splitlines()[0]}"
    return None
