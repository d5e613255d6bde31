"""AdaHessian (Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney 2021): Adam with z * (H z) in place of the gradient.

One random sign vector z per step. The average is one of squares, so that its root does not estimate the diagonal of H:
the mean of (z_i (H z)_i)^2 is the sum of H_ij^2 over j, and the root is the length of a row of H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from curvbench.instance import Instance
from curvbench.operators import Diagonal
from curvbench.parts.hutchinson import Curvature, diagonal_draw, no_product
from curvbench.parts.moments import Moments, MomentsProbe
from curvbench.spec import About


@dataclass(frozen=True)
class Adahessian(MomentsProbe):
    """The root of the average of (z * (H z))^2, z random signs; the step is that of the optimizer.

    ``curvature``: the matrix in the products. ``hessian`` is the Hessian H of the mean loss, ``fisher`` the type-2
    Fisher. ``epsilon``: a number added to the represented diagonal in the step. ``seed``: the seed of the random
    signs.
    """

    epsilon: float = 1e-4
    curvature: Curvature = "hessian"
    updates: int = 32
    batch_size: int | None = None
    seed: int = 0

    combines_by = None
    is_mean_over_samples: ClassVar[bool] = True

    about = About(
        represents="diag(sqrt(v)), v the corrected running average of (z * (H z))^2",
        damping="epsilon is added to sqrt(v), the represented diagonal itself",
        cost={"statistics": "4 P", "invert": "0", "precondition": "5 P / 2", "memory": "2 P"},
        source="Yao, Gholami, Shen, Mustafa, Keutzer and Mahoney 2021, Algorithm 1, with its public code",
        notes=(
            "Over many draws sqrt(v) tends to the lengths of the rows of H, or of F, which are never below the size of "
            "the diagonal: on small networks 2.6 times that in the median. The sign of the curvature is lost.",
            "In a convolution the entries of a kernel share the mean of |z * (H z)| over the kernel, as in the public "
            "code; the bias has its own. Weight decay is the optimizer's.",
            "H is the Hessian of the mean loss with the data's labels, which may be indefinite.",
        ),
        family="first order",
        color="sky",
        formulas=(
            r"\hat F = \mathrm{diag}(\sqrt{\hat v})",
            r"v \leftarrow \beta_2 v + (1 - \beta_2)\,(z \circ H z)^2",
            r"\hat v = \frac{v}{1 - \beta_2^t}",
        ),
    )

    def unsupported(self, instance: Instance) -> str | None:
        return no_product(instance, self.curvature)

    def init(self, instance: Instance) -> Moments:
        return self.rates.start(instance)

    def update(self, state: Moments, batch: Instance) -> Moments:
        drawn = diagonal_draw(batch, self.curvature, self.seed, state.taken)
        return self.rates.take_in(state, batch, _over_kernels(batch, drawn).square())

    def precondition(self, state: Moments, gradient: Tensor) -> Tensor:
        return self.rates.step(state)

    def operator(self, state: Moments) -> Diagonal:
        return Diagonal(self.rates.corrected_second(state).sqrt())


def _over_kernels(batch: Instance, vector: Tensor) -> Tensor:
    """A vector (P,) with the mean of the absolute values over a kernel in place of each entry of a kernel."""
    convolutions = [layer for layer in batch.layers if batch.sizes[layer.name].kernel]
    named = batch.unpack(vector)
    for name in {name for layer in convolutions for name in layer.parameters if named[name].ndim > 2}:
        named[name] = named[name].abs().mean(tuple(range(2, named[name].ndim)), keepdim=True).expand_as(named[name])
    return batch.pack(named)
