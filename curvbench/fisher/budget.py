"""Memory planned ahead: what an exact Fisher needs, what there is, and how many samples would fit."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import torch

from curvbench.fisher.columns import TILE_BYTES
from curvbench.spec import LayerSize

GRAPH_BYTES = 2**30  # what one recorded pass may keep: more samples go in several passes
GRAM_ITEMSIZE = 8
PASS_ITEMSIZE = 3 * 8  # a layer's output and what follows it (BatchNorm, activation), kept by a float64 pass
DIAGONAL_ITEMSIZE = 2 * 8  # per layer and joined
SCRATCH = 3 * TILE_BYTES


def planned_bytes(sizes: Sequence[LayerSize], samples: int, columns: int, itemsize: int) -> int:
    """Bytes that the exact Fisher of a batch needs at its peak, above model and batch.

    Args:
        sizes: of the covered layers.
        samples: N.
        columns: R score columns per sample: C - 1 per token for type-2 cross entropy, the draws for Monte-Carlo.
        itemsize: bytes of an entry of the stored slopes and inputs.

    Counted are slopes (R, N, G, M, S) and inputs of the largest layer, for others can be made when they are read, and
    beside them the larger of the network pass and the contraction: the Gram matrices (R N, R N) of the layers and their
    sum, the patches of the largest layer, the diagonal and tiles.
    Inputs are taken to be as many as with stride 1; tensors inside attention are not counted.
    """
    outputs = sum(size.groups * size.outputs * size.positions for size in sizes)
    patches = max(size.groups * size.inputs * size.positions for size in sizes)
    parameters = sum(size.groups * size.outputs * size.inputs for size in sizes)
    per_layer = [
        size.groups * size.positions * (columns * size.outputs + size.inputs // max(size.kernel, 1)) for size in sizes
    ]
    grams = (len(sizes) + 1) * GRAM_ITEMSIZE * (samples * columns) ** 2
    contraction = grams + samples * patches * itemsize + parameters * DIAGONAL_ITEMSIZE + SCRATCH
    recorded = min(samples * outputs * PASS_ITEMSIZE, GRAPH_BYTES + outputs * PASS_ITEMSIZE)
    return samples * max(per_layer) * itemsize + max(recorded, contraction)


def largest_batch(sizes: Sequence[LayerSize], columns: int, itemsize: int, available: int, most: int) -> int:
    """The largest N, at most ``most``, whose planned bytes are available; 0 where not even one sample fits."""
    return bisect_right(range(1, most + 1), available, key=lambda n: planned_bytes(sizes, n, columns, itemsize))


def available_bytes(device: torch.device) -> int:
    """Memory of a device that can be had now; where the system does not tell, all that the machine has."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    return int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def column_memory(device: torch.device) -> int:
    """Bytes that stored columns may take: a third of what can be had."""
    return available_bytes(device) // 3
