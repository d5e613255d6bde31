"""Sentences on clocked steps, from rows made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from frames import frame, row

from curvbench.analysis.verdict import sentences


def steps(ratios: Mapping[str, Sequence[float]], flops: Mapping[str, float]) -> pd.DataFrame:
    return frame(
        *(
            row(name, metric, value, scope="step", seed=seed, method="lr=0.1,paced=4")
            for name, values in ratios.items()
            for seed, ratio in enumerate(values)
            for metric, value in (("pace.ratio", ratio), ("pace.flops_ratio", flops[name]))
        )
    )


def test_the_shortest_step_is_named_with_the_others_and_sgd_is_no_rival() -> None:
    rows = steps({"sgdm": [1.0], "kfac": [2.0, 3.0, 2.5], "fngd": [1.1, 1.2, 1.1], "eva": [1.8]}, dict.fromkeys(
        ("sgdm", "kfac", "fngd", "eva"), 1.0
    ))  # fmt: skip
    first, second = sentences(rows)
    assert first == (
        "fngd has the shortest step: 1.1 (1.1 to 1.2) times as long as SGD's; eva follows with 1.8, "
        "and kfac is last with 2.5 (2 to 3)."
    )
    assert second == "It has the fewest counted FLOPs too, 1 times SGD's."


def test_counts_that_say_otherwise_are_said() -> None:
    rows = steps({"kfac": [2.0], "eva": [1.5]}, {"kfac": 1.2, "eva": 1.7})
    assert sentences(rows)[1] == "kfac has the fewest counted FLOPs: 1.2 times SGD's, and eva's 1.7."
    assert sentences(steps({"kfac": [2.0]}, {"kfac": 1.2})) == [
        "kfac has the shortest step: 2 times as long as SGD's; no other step was clocked."
    ]
