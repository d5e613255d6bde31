"""Memory planned ahead: the bytes of an exact Fisher, the bytes that are free, and the batch that fits."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import torch

from curvbench.fisher.columns import TILE_BYTES
from curvbench.spec import LayerSize

GRAPH_BYTES = 2**30  # that one recorded pass may keep: a larger batch takes several passes
GRAM_ITEMSIZE = 8
LEADING = 10  # eigenvectors that a reference keeps
PASS_ITEMSIZE = 3 * 8  # a float64 pass keeps a layer's output, its BatchNorm and its activation
DIAGONAL_ITEMSIZE = 2 * 8  # the layers' diagonals, and their concatenation
SCRATCH = 3 * TILE_BYTES


def planned_bytes(sizes: Sequence[LayerSize], samples: int, R: int, itemsize: int, has_gram: bool = True) -> int:
    """Bytes that the exact Fisher of a batch needs at its peak, above model and batch.

    Args:
        sizes: sizes of the covered layers.
        samples: N.
        R: score columns per sample: C - 1 per token for type-2 cross entropy, the draws for Monte-Carlo.
        itemsize: bytes of an entry of the stored slopes and inputs.
        has_gram: whether the Gram matrices are made, which products with vectors do without.

    The sum counts the slopes (R, N, G, M, S) and the inputs of the largest layer, because the other layers' can be made
    when they are read, and the largest of the network pass, the contraction and the leading eigenvectors. The
    contraction holds the Gram matrices (R N, R N) of the layers and their sum, the patches of the largest layer, the
    diagonal and tiles. With fewer parameters than columns it holds V and V V^T instead. Every convolution counts as one
    of stride 1; tensors inside attention are not counted.
    """
    outputs = sum(size.groups * size.outputs * size.positions for size in sizes)
    patches = max(size.groups * size.inputs * size.positions for size in sizes)
    parameters = sum(size.groups * size.outputs * size.inputs for size in sizes)
    per_layer = [
        size.groups * size.positions * (R * size.outputs + size.inputs // max(size.kernel, 1)) for size in sizes
    ]
    grams = _square_bytes(len(sizes), parameters, samples * R, itemsize) if has_gram else 0
    contraction = grams + samples * patches * itemsize + parameters * DIAGONAL_ITEMSIZE + SCRATCH
    leading = grams + parameters * LEADING * itemsize if has_gram else 0
    recorded = min(samples * outputs * PASS_ITEMSIZE, GRAPH_BYTES + outputs * PASS_ITEMSIZE)
    return samples * max(per_layer) * itemsize + max(recorded, contraction, leading)


def _square_bytes(layers: int, parameters: int, columns: int, itemsize: int) -> int:
    """Bytes of the layers' Gram matrices and their sum; with few parameters, of V in both precisions and V V^T."""
    if parameters < columns:
        return parameters * (columns * (itemsize + GRAM_ITEMSIZE) + parameters * GRAM_ITEMSIZE)
    return (layers + 1) * GRAM_ITEMSIZE * columns**2


def largest_batch(sizes: Sequence[LayerSize], R: int, itemsize: int, available: int, most: int) -> int:
    """The largest N, at most ``most``, whose planned bytes are available; 0 means that no sample fits."""
    return bisect_right(range(1, most + 1), available, key=lambda n: planned_bytes(sizes, n, R, itemsize))


def most_draws(sizes: Sequence[LayerSize], samples: int, itemsize: int, available: int) -> int:
    """The largest number of Monte-Carlo draws per sample, at most 1,000, whose planned bytes are available; or 0."""
    return bisect_right(range(1, 1001), available, key=lambda draws: planned_bytes(sizes, samples, draws, itemsize))


def refuse_oversized(
    sizes: Sequence[LayerSize],
    samples: int,
    R: int,
    itemsize: int,
    device: torch.device,
    has_gram: bool = True,
    other: str = "",
) -> None:
    """Raise an out-of-memory error before anything is computed; the text says what would fit.

    ``other``: a remedy besides fewer samples and Monte-Carlo draws.

    Raises:
        MemoryError, torch.OutOfMemoryError: the planned bytes are more than the free bytes of the device.
    """
    free = available_bytes(device)
    needed = planned_bytes(sizes, samples, R, itemsize, has_gram)
    if needed <= free:
        return
    most = largest_batch(sizes, R, itemsize, free, samples)
    advice = f"{most} samples would fit" if most else "not even one sample would fit"
    if draws := most_draws(sizes, samples, itemsize, free):
        advice += f", or a Monte-Carlo Fisher of all {samples}, with mc_samples of at most {draws}"
    advice += f", or {other}" if other else ""
    text = f"{samples} samples of {R} columns need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    raise (MemoryError if device.type == "cpu" else torch.OutOfMemoryError)(f"{text}; {advice}")


def refuse_large_grams(matrices: int, order: int, device: torch.device) -> None:
    """Raise an out-of-memory error if so many Gram matrices of this order, and their sum, would not fit."""
    free, needed = available_bytes(device), (matrices + 1) * GRAM_ITEMSIZE * order**2
    if needed > free:
        raise (MemoryError if device.type == "cpu" else torch.OutOfMemoryError)(
            f"the Gram matrices of {order} score columns need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
            "take fewer samples or loss terms, or fisher_type='mc' with few mc_samples"
        )


def available_bytes(device: torch.device) -> int:
    """Free bytes of a device; on a system that does not report them, all bytes of the machine."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    meminfo = Path("/proc/meminfo")
    line = re.search(r"MemAvailable:\s*(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    return int(line[1]) * 1024 if line else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def column_memory(device: torch.device) -> int:
    """Bytes that stored columns may take: a third of the free bytes."""
    return available_bytes(device) // 3
