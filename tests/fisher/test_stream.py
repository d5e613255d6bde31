"""Columns made in parts: whatever is cut, layers or samples, the matrix is the same."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from cases import Case, instance_of

import curvbench as cb
from curvbench.fisher import stream
from curvbench.fisher.stream import Stream, collect, segments
from curvbench.operators import Dense


@pytest.mark.parametrize("kind", ["type-2", "empirical", "mc"])
def test_streamed_and_stored_columns_are_the_same_matrix(case: Case, kind: str) -> None:
    instance = instance_of(case.name)
    stored = cb.exact_fisher(instance, kind, mc_samples=3, seed=4)
    streamed = cb.exact_fisher(instance, kind, mc_samples=3, seed=4, memory=0)
    assert isinstance(streamed.columns, Stream) or len(instance.layers) == 1
    gradient = instance.gradient()
    operator = Dense(torch.diag(torch.rand(instance.size, dtype=torch.float64)))  # no closed form: column by column
    for read in (
        lambda f: f.gram(),
        lambda f: f.diagonal(),
        lambda f: f.matvec(gradient),
        lambda f: f.natural_gradient(gradient, 1e-2),
        lambda f: torch.tensor(f.inner(operator)),
        lambda f: torch.tensor([f.layer(layer.name).frobenius_norm() for layer in instance.layers]),
    ):
        torch.testing.assert_close(read(streamed), read(stored), rtol=1e-11, atol=1e-13)
    assert (streamed.shape, streamed.dtype, streamed.device) == (stored.shape, stored.dtype, stored.device)


@pytest.mark.parametrize("kind", ["type-2", "empirical", "mc"])
def test_samples_in_parts_give_the_same_columns(case: Case, kind: str) -> None:
    instance = instance_of(case.name)
    whole, cut = (collect(instance, kind, 2, 1, graph_bytes=size) for size in (stream.GRAPH_BYTES, 1))
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a.slopes, b.slopes, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(a.inputs, b.inputs, rtol=1e-11, atol=1e-13)


def test_a_segment_is_held_until_another_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[str]] = []

    def spy(instance: cb.Instance, *args: object, **options: object) -> object:
        made.append([layer.name for layer in args[4]])  # type: ignore[attr-defined, index]
        return collect(instance, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(stream, "collect", spy)
    instance = instance_of("nasty_cnn")
    fisher = cb.exact_fisher(instance, memory=8000)
    names = [layer.name for layer in instance.layers]
    fisher.gram()
    assert [*chain(*made)] == names and 1 < len(made) < len(names)
    fisher.columns[-1].squares()
    assert [*chain(*made)] == names, "the last segment was made again"


def test_backward_passes_stop_at_the_first_layer_of_a_segment() -> None:
    instance = instance_of("nasty_cnn")
    last = instance.layers[-1]
    tape = instance.tape([last.name])
    graph, nodes = [tape.outputs.grad_fn], 0
    while graph:
        node = graph.pop()
        nodes += 1
        graph += [parent for parent, _ in node.next_functions if parent is not None]  # type: ignore[union-attr]
    assert nodes <= 4, "the graph reaches behind the last layer"
    assert list(tape.roles) == [last.name]


def test_segments_fill_their_budget_and_hold_every_layer_once() -> None:
    instance = instance_of("nasty_cnn")
    alone = segments(instance, 2, 8, 0)
    assert [len(s) for s in alone] == [1] * len(instance.layers)
    assert segments(instance, 2, 8, 10**9) == [list(instance.layers)]
    assert [*chain(*alone)] == list(instance.layers)
