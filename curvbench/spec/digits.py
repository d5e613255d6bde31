"""The digits of a probe: two hyperparameters that every probe takes beside its own fields."""

from __future__ import annotations

from typing import Any, Literal

StatisticsDtype = Literal["bfloat16", "float16", "float32", "float64", "tf32"]
"""Of the passes and of the statistics; ``tf32`` is float32 with products of 11 bits, on CUDA."""

FactorDtype = Literal["float32", "float64"]
"""Of the factors: how they are stored, factorized and applied."""

DIGITS: dict[str, Any] = {"statistics_dtype": StatisticsDtype | None, "factor_dtype": FactorDtype | None}
"""The two hyperparameters with their annotations."""
