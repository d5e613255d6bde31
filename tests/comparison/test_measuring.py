"""``cb.measure``: rows equal those of the single calls, the model stays as it was, and what cannot be had is said."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import curvbench as cb
from curvbench.analysis.roles import COMPARED
from curvbench.comparison import BOUNDS, measuring
from curvbench.operators import Identity
from curvbench.spec import Probe, Status

FEW = ("sgdm", "kfac", "layer")


def small(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def batch(dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(12, 5, dtype=dtype), torch.randint(3, (12,))


def few(model: nn.Module, *data: Any, **options: Any) -> cb.Comparison:
    return cb.measure(model, *data, probes=options.pop("probes", FEW), progress=False, **options)


@pytest.fixture(scope="module")
def measured() -> cb.Comparison:
    return few(small(), *batch())


def value(frame: pd.DataFrame, probe: str, metric: str, scope: str = "network") -> float:
    (found,) = frame[(frame["probe"] == probe) & (frame["metric"] == metric) & (frame["scope"] == scope)]["value"]
    return float(found)


def test_rows_are_those_of_the_single_calls(measured: cb.Comparison) -> None:
    instance = cb.Instance(small().eval(), *batch(), loss="cross_entropy")
    fisher = cb.exact_fisher(instance)
    for name in FEW:
        errors = cb.errors(cb.fit(cb.probe(name), instance), fisher)
        assert value(measured.frame, name, "error.relative") == pytest.approx(errors["relative"], rel=1e-9)
        step = cb.direction_errors(cb.probe(name), instance)
        assert value(measured.frame, name, "direction.quality") == pytest.approx(step["quality"], rel=1e-9)
    assert set(measured.frame["status"]) <= {"ok", "skipped"}


def test_a_folder_that_cannot_be_written_is_one_line(measured: cb.Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the run cannot be written to '.*file'") as caught:
        measured.save(tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_the_model_and_the_process_stay_as_they_were() -> None:
    model, (inputs, targets) = small().train(), batch()
    before, given = copy.deepcopy(model.state_dict()), inputs.clone()
    torch.manual_seed(5)
    ahead = torch.get_rng_state()
    few(model, inputs, targets, probes=("kfac[fisher_type=mc]",))
    assert torch.equal(torch.get_rng_state(), ahead)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert torch.equal(inputs, given) and all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_by_default_eight_methods_and_two_references() -> None:
    found = cb.measure(nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), progress=False)
    assert [*found.table().index] and set(found.frame["probe"]) == {*COMPARED, *BOUNDS}
    documented = cb.measure.__doc__ or ""
    assert all(f"``{name}``" in documented for name in (*COMPARED, *BOUNDS))


@pytest.mark.parametrize(
    "form", ["numpy", "mapping", "loader", "loader of mappings", "float32", "lists"], ids=lambda form: form
)
def test_batches_come_as_people_have_them(form: str, measured: cb.Comparison) -> None:
    inputs, targets = batch()
    model: nn.Module = small()
    given: tuple[Any, ...] = (inputs, targets)
    if form == "numpy":
        given = (inputs.numpy(), targets.numpy().astype(np.int32))
    if form == "lists":
        given = (inputs, targets.tolist())
    if form in ("mapping", "loader of mappings"):
        model = Named(model)
        one = {"x": inputs, "labels": targets}
        given = ([one],) if form == "loader of mappings" else (one,)
    if form == "loader":
        data = torch.utils.data.TensorDataset(inputs, targets)
        given = (torch.utils.data.DataLoader(data, batch_size=12),)
    if form == "float32":
        model, given = small(torch.float32), (inputs.numpy(), targets)
    found = few(model, *given, probes=("kfac",))
    close = 1e-4 if form == "float32" else 1e-9
    expected = value(measured.frame, "kfac", "error.relative")
    assert value(found.frame, "kfac", "error.relative") == pytest.approx(expected, rel=close)


class Named(nn.Module):
    """A model that is called by keyword and returns its outputs as transformers does."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(logits=self.body(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_in_half_precision_is_measured_at_its_rounded_weights(dtype: torch.dtype) -> None:
    found = few(small(dtype), batch()[0].to(dtype), batch()[1])
    assert "error" not in set(found.frame["status"])
    wide = few(small(dtype).float(), batch()[0].to(dtype).float(), batch()[1])
    pd.testing.assert_series_equal(
        *(f[f["metric"].str.startswith("error")]["value"] for f in (found.frame, wide.frame))
    )


def test_a_loader_gives_its_first_three_batches(capsys: pytest.CaptureFixture[str]) -> None:
    given = [batch(seed=seed) for seed in range(5)]
    found = cb.measure(small(), given, probes=("identity", "diag"))
    assert sorted(set(found.frame["seed"])) == [0, 1, 2]
    said = capsys.readouterr().err
    assert "2 methods, the first 3 batches of the loader" in said and "6/6 diag" in said
    for seed in range(3):
        alone = few(small(), *given[seed], probes=("diag",))
        rows = found.frame[found.frame["seed"] == seed]
        assert value(rows, "diag", "error.relative") == value(alone.frame, "diag", "error.relative")


def test_verdicts_on_the_way_are_provisional(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "PAUSE", 0.0)
    found = cb.measure(small(), *batch(), probes=("sgdm", "kfac", "eva"))
    said = [line for line in capsys.readouterr().err.splitlines() if "Provisional" in line]
    assert len(said) == 2 and not any("Provisional" in sentence for sentence in found.verdict())


def test_a_sampled_fisher_is_for_methods_that_sample() -> None:
    found = few(small(), *batch(), probes=None, mc_samples=2)
    drawn = {*found.frame["probe_args"][found.frame["probe"].isin(["diag", "kfac", "ekfac"])]}
    assert drawn == {"fisher_type=mc"}
    assert {*found.frame["probe_args"][found.frame["probe"] == "layer"]} == {"fisher_type=mc,mc_samples=2"}
    (typed,) = {*few(small(), *batch(), probes=("kfac[fisher_type=type-2]",), mc_samples=2).frame["probe_args"]}
    assert typed == ""
    asked = few(small(), *batch(), probes=("kfac",), mc_samples=2)
    assert {*asked.frame["probe_args"]} == {"fisher_type=mc"} and "Monte-Carlo Fisher of 2 draws" in str(asked).replace(
        "\n  ", " "
    )


def test_what_does_not_fit_in_memory_is_left_out_and_named() -> None:
    found = few(small(), *batch(), memory=1200.0)
    assert [*found.frame["probe"].unique()] == ["sgdm"]
    notes = "\n".join(found.notes)
    assert "kfac was left out: it needs" in notes and "more than 1.2 kB" in notes
    with pytest.raises(ValueError, match="no method needs at most 10 B"):
        few(small(), *batch(), memory=10.0)


def test_no_method_starts_after_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the budget was spent before any method began"):
        few(small(), *batch(), budget=0.0)


def test_a_comparison_is_text_page_figure_table_and_run(measured: cb.Comparison, tmp_path: Path) -> None:
    assert "kfac" in str(measured) and "Sequential" in str(measured)
    assert "<table" in measured._repr_html_() and "kfac" in measured._repr_html_()
    assert r"\begin{tabular}" in measured.to_latex() and set(measured.table().index) == set(FEW)
    assert "kfac" in measured.plot().to_json()
    folder = measured.save(tmp_path)
    saved = cb.load(tmp_path)
    pd.testing.assert_frame_equal(
        saved[["probe", "metric", "scope", "value"]], measured.frame[["probe", "metric", "scope", "value"]]
    )
    assert folder.is_relative_to(tmp_path / "measure")
    assert measured.save(tmp_path) == folder


def test_a_probe_that_does_not_fit_the_model_is_a_row_and_not_the_end() -> None:
    found = few(small(), *batch(), probes=("kfac", "ginger[batch_size=99]"))
    assert set(found.frame[found.frame["probe"] == "ginger"]["status"]) == {Status.UNSUPPORTED}
    assert "error" not in {*found.frame[found.frame["probe"] == "kfac"]["status"]}


BAD = {
    "no model": (lambda: few("resnet", *batch()), "model must be"),  # type: ignore[arg-type]
    "no targets": (lambda: few(small(), batch()[0]), "targets are missing"),
    "fewer targets": (
        lambda: few(small(), batch()[0], batch()[1][:5]),
        "there are 5 targets, but the outputs have shape",
    ),
    "a class too many": (lambda: few(small(), batch()[0], batch()[1] + 9), "targets must lie in 0..2"),
    "words": (lambda: few(small(), batch()[0], ["a"] * 12), "targets must be numbers"),
    "an empty loader": (lambda: few(small(), []), "the loader gives no batch"),
    "a loader of inputs": (lambda: few(small(), [batch()[0]]), "a batch must be a pair"),
    "a number": (lambda: few(small(), 3), "inputs must be tensors, numpy arrays or a loader"),
    "an unknown probe": (lambda: few(small(), *batch(), probes=("kfak",)), "kfac"),
    "no probe": (lambda: few(small(), *batch(), probes=()), "probes is empty"),
    "an unknown loss": (lambda: few(small(), *batch(), loss="hinge"), "hinge"),
    "a damping of zero": (lambda: few(small(), *batch(), damping=0.0), "damping"),
    "a layer that fails": (lambda: few(nn.Sequential(small(), nn.Linear(9, 2)), *batch()), "mat1|shapes"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(what: str) -> None:
    call, text = BAD[what]
    with pytest.raises((ValueError, TypeError), match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Slow(Probe):
    """A method of the user's own that takes longer than the budget."""

    slept: ClassVar[list[float]] = []

    def update(self, state: Any, batch: cb.Instance) -> Any:
        if not self.slept:
            self.slept.append(5.0)
            time.sleep(5.0)
        return batch.size

    def precondition(self, state: Any, gradient: Tensor) -> Tensor:
        return gradient

    def operator(self, state: Any) -> Identity:
        return Identity(state, torch.float64)


def test_methods_that_the_budget_left_out_are_named() -> None:
    found = few(small(), *batch(), probes=(Slow(), cb.probe("sgdm"), cb.probe("kfac")), budget=5.0)
    assert [*found.frame["probe"].unique()] == ["Slow"] and "error" not in set(found.frame["status"])
    assert "not measured, because the budget was spent: sgdm, kfac" in "\n".join(found.verdict())
