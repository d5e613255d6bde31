"""A picture of every method's matrix beside the exact Fisher, on one small network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import curvbench as cb
from curvbench.analysis.matrices import fitting_scale
from curvbench.instance import Instance
from curvbench.spec.pictures import Blocks

SIZES = (5, 4, 3)  # of the network's inputs, hidden units and classes
SAMPLES = 32
DECADES = 3  # between an entry that is not seen and the largest
POSITIVE, NEGATIVE = (37, 99, 235), (217, 72, 15)  # of entries, both seen on white and on black
CAPTION = f"""\
Entries of the matrix of a network with {SIZES[0]} inputs, {SIZES[1]} hidden units and {SIZES[2]} classes on {SAMPLES}
samples: blue is positive and orange negative, and a colour fades over {DECADES} decades below the largest entry. The
matrix of the method has the scalar multiple that brings it nearest to the exact one; the relative distance is then
"""


class Pictures:
    """Draws the matrix of a method; the exact one is the same for all."""

    def __init__(self) -> None:
        self.instance = instance()
        self.exact = self._matrix("full")

    def draw(self, name: str, folder: Path) -> float:
        """Write ``NAME.png``: exact, approximation, difference. The relative error after the best scalar multiple."""
        approximation = self._matrix(name)
        scaled = fitting_scale(Blocks("", 1, self.exact, approximation, {})) * approximation
        panels = [self.exact, scaled, scaled - self.exact]
        largest = float(abs(self.exact).max())
        rule = np.zeros((len(self.exact), 2, 4), np.uint8)
        images = [colours(panel, largest) for panel in panels]
        write(folder / f"{name}.png", np.concatenate([images[0], rule, images[1], rule, images[2]], axis=1))
        return float(np.linalg.norm(panels[2]) / np.linalg.norm(self.exact))

    def _matrix(self, name: str) -> npt.NDArray[np.float64]:
        dense: Tensor = cb.fit(cb.probe(name), self.instance).to_dense()
        return dense.numpy()


def instance() -> Instance:
    """The network and its batch; inputs are correlated and not centred, so that the matrix has a structure."""
    generator = torch.Generator().manual_seed(0)
    inputs, hidden, classes = SIZES
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    draws = torch.randn(SAMPLES + inputs, inputs, generator=generator, dtype=torch.float64)
    batch = draws[inputs:] @ draws[:inputs] / 2 + 0.5
    return cb.Instance(model, batch, torch.arange(SAMPLES) % classes, loss="cross_entropy")


def colours(matrix: npt.NDArray[np.float64], largest: float) -> npt.NDArray[np.uint8]:
    """(n, n) -> (n, n, 4): the sign is the colour, the size on a logarithmic scale its opacity."""
    size = np.log10(np.maximum(abs(matrix) / largest, 10.0**-DECADES)) / DECADES + 1
    pixels = np.where((matrix > 0)[..., None], POSITIVE, NEGATIVE)
    return np.concatenate([pixels, 255 * size.clip(0, 1)[..., None]], axis=-1).astype(np.uint8)


def write(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """A PNG with one pixel per entry, which the page enlarges without smoothing."""
    from PIL import Image

    Image.fromarray(pixels, "RGBA").save(path, optimize=True)
