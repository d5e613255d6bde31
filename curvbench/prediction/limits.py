"""Which networks the methods with large blocks decline or read in tiles, as their own code decides."""

from __future__ import annotations

import torch

from curvbench.parts import storage
from curvbench.parts.factors import is_cut
from curvbench.parts.submatrices import Cutting
from curvbench.prediction.layout import Block, Shapes
from curvbench.spec import Probe

_DTYPES = {4: torch.float32, 8: torch.float64}


def refusal(probe: Probe, shapes: Shapes, R: int, itemsize: int) -> str:
    """Why a shipped method declines the network; empty if it does not."""
    numbers, what = 0, ""
    if (rank := _rank(probe, shapes, R)) is not None:
        return rank
    if probe.name == "shampoo":
        cutting = Cutting(probe.hyperparameters["block"], probe.hyperparameters["one_sided"])
        numbers = sum(block.repeat * cutting.numbers((block.size.groups, *block.own)) for block in shapes.blocks)
        what = "sums L and R"
    elif probe.name == "psgd":
        numbers, what = sum(block.repeat * _roots(block) for block in shapes.blocks), "factors Q_L and Q_R"
    elif probe.name in ("soap", "klshampoo"):
        longest = probe.hyperparameters["max_precond_dim"]
        numbers, what = sum(block.repeat * _bases(block, longest) for block in shapes.blocks), "moments and bases"
    elif probe.name == "hylo":
        kept = max(1, int(probe.hyperparameters["rank"] * R * shapes.samples))
        numbers, what = kept * shapes.parameters, "kept scores"
    elif probe.name == "mbf":
        every = probe.hyperparameters["fc"] == "all"
        numbers, what = sum(block.repeat * _mini(block, every) for block in shapes.blocks), "mini-blocks"
    return storage.too_large(what, numbers, _DTYPES[itemsize]) or "" if what else ""


def _rank(probe: Probe, shapes: Shapes, R: int) -> str | None:
    """Why a network has too few parameters or score columns for a rank; empty if it has enough, None without a rank."""
    key = {"eigen": "rank", "ginger": "rank", "nystrom": "rank", "qng": "memory"}.get(probe.name)
    if key is None:
        return None
    most = min(shapes.parameters, shapes.samples * R) if probe.name == "eigen" else shapes.parameters
    rank = probe.hyperparameters[key]
    return f"{key} {rank} is more than the {most} parameters or score columns there are" if rank > most else ""


def _bases(block: Block, longest: int) -> int:
    if block.kind == "vector" and (block.size.inputs > 1 or min(block.own) == 1):
        return 0
    return 2 * block.size.groups * sum(n**2 for n in block.own if n <= longest)


def _roots(block: Block) -> int:
    M, D = block.own
    sizes = [M if is_cut(M) else M**2, D if is_cut(D) or block.kind == "lookup" else D**2]
    return block.size.groups * sum(sizes)


def _mini(block: Block, every_unit: bool) -> int:
    G, M, D, _, k = block.size
    return G * M * D * k if k else D**2 * (G * M if every_unit else 1)


def in_tiles(probe: Probe, shapes: Shapes, R: int, itemsize: int) -> bool:
    """Whether the blocks of all output units are too many to be stored, so that each use forms them."""
    if probe.name not in ("unit", "cwngd"):
        return False
    numbers = 0
    for block in shapes.blocks:
        G, M, D, S, _ = block.size
        rows = shapes.samples * (R if S > 1 else 1)
        numbers += block.repeat * G * M * D * (D if probe.name == "unit" else min(rows, D))
    return not storage.fits(numbers, _DTYPES[itemsize])
