from __future__ import annotations

import pytest

from curvbench.analysis.limits import LIMITS, limit_of, with_thresholds


def test_counts_are_exact_errors_relative_and_times_sampled() -> None:
    for metric in ("flops.counted", "flops.model", "memory.peak", "memory.state"):
        assert limit_of(metric) == (0, 0, False)
    for metric in ("error.relative", "direction.cosine", "health.condition", "test.accuracy", "of.a.later.version"):
        assert 0 < limit_of(metric).relative <= 1e-4 and not limit_of(metric).sampled
    for metric in ("time.wall", "time.ratio", "train.seconds_to_target", "machine.peak"):
        assert limit_of(metric).sampled


def test_peaks_of_cudas_allocator_may_move_a_hundredth() -> None:
    assert limit_of("memory.peak", "cuda max_memory_allocated").relative == 0.01
    assert limit_of("memory.peak", "live tensor bytes").relative == 0
    tight = with_thresholds(["memory=1e-3"])
    assert limit_of("memory.peak", "cuda max_memory_allocated", tight).relative == 1e-3


def test_thresholds_go_by_the_longest_prefix() -> None:
    limits = with_thresholds(["error=1e-3", "error.relative=1e-2", "time=0.5"])
    assert limit_of("error.relative", limits=limits).relative == 1e-2
    assert limit_of("error.cosine", limits=limits) == LIMITS[""]._replace(relative=1e-3)
    assert limit_of("time.wall", limits=limits) == (0.5, 0, True)


@pytest.mark.parametrize("text", ["errr=1", "error", "error=", "error=-1", "error=nan", "error=inf", "error=1=2"])
def test_a_wrong_threshold_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"--threshold"):
        with_thresholds([text])
