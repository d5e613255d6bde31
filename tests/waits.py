"""How often the host would wait for a GPU: a dispatch mode that counts the operations that read a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._ops import OpOverload

from curvbench.meters import dispatch

READS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "_assert_async",
}


class Waits:
    """Counts operations that wait for the device, and not those inside LAPACK's calls; ``by_shape`` counts these."""

    def __init__(self) -> None:
        self.count, self.by_shape = 0, Counter[tuple[str, tuple[int, ...]]]()

    def takes_apart(self, func: OpOverload) -> bool:
        return False

    def hear(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put") and any(i is not None and i.dtype == torch.bool for i in args[1])
        repeats = name == "repeat_interleave" and kwargs.get("output_size") is None
        self.count += name in READS or by_mask or repeats
        if name.removeprefix("_").startswith(("linalg_eigh", "linalg_cholesky")):
            self.by_shape[name, tuple(args[0].shape)] += 1


@contextmanager
def waits() -> Iterator[Waits]:
    """Count inside the block."""
    found = Waits()
    dispatch.listen(found)
    try:
        yield found
    finally:
        dispatch.leave(found)
