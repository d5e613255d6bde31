"""The blocks that cells keep, against dense matrices."""

from __future__ import annotations

import io
from typing import ClassVar

import numpy as np
import pytest
import torch
from cases import Case, Truth, fisher_of, instance_of

import curvbench as cb
from curvbench import operators
from curvbench.meters.kept import LARGEST, SIZE, SPECTRUM, keep_blocks
from curvbench.meters.kept import blocks as blocks_of
from curvbench.spec.pictures import Blocks, Spectrum, collected
from curvbench.store.arrays import pack, unpack

TINY = float(np.finfo(np.float32).tiny)  # blocks are kept in float32


@pytest.mark.parametrize("name", ["kfac", "unit", "ginger"])
def test_the_leading_block_and_the_spectra(case: Case, judge: Truth, name: str) -> None:
    instance = instance_of(case.name)
    operator = cb.fit(cb.probe(name), instance)
    pictures = blocks_of(operator, fisher_of(case.name))
    assert pictures is not None
    (shown,) = [layer for layer in instance.layers if layer.name == pictures.layer]
    assert shown.inputs == pictures.inputs == min(layer.inputs for layer in instance.layers)
    n = len(pictures.exact)
    assert n <= SIZE
    assert n % shown.inputs == 0 or n == min(SIZE, shown.size) < shown.inputs
    place = slice(shown.start, shown.start + n)
    for matrix, dense in ((pictures.exact, judge.fisher("type-2")), (pictures.approximation, operator.to_dense())):
        expected = dense[place, place].numpy()
        assert abs(matrix - expected).max() <= 1e-6 * abs(expected).max() + TINY
    for layer in instance.layers:
        spectrum = pictures.spectra[layer.name]
        for values, dense in ((spectrum.exact, judge.fisher("type-2")), (spectrum.approximation, operator.to_dense())):
            expected = torch.linalg.eigvalsh(dense[layer.slice, layer.slice]).flip(0)[:SPECTRUM].numpy()
            assert values.shape == expected.shape
            assert abs(values - expected).max() <= 1e-6 * expected.max() + TINY
    assert all(layer.size <= LARGEST for layer in instance.layers)


def test_blocks_are_kept_only_where_someone_collects(case: Case) -> None:
    operator, fisher = cb.fit(cb.probe("kfac"), instance_of(case.name)), fisher_of(case.name)
    keep_blocks(operator, fisher)
    with collected() as kept:
        keep_blocks(operator, fisher)
    keep_blocks(operator, fisher)
    assert len(kept) == 1


def test_an_operator_without_layer_blocks_keeps_none() -> None:
    class Whole(operators.Dense):
        def _block(self, start: int, stop: int) -> operators.Operator:
            raise ValueError("none in closed form")

    fisher = fisher_of("mlp_tanh")
    assert blocks_of(Whole(fisher.to_dense()), fisher) is None


MADE = Blocks(
    "a/b <c>", 2, np.eye(4), 2 * np.eye(4), {"a/b <c>": Spectrum(np.ones(3), np.array([3.0, np.inf, np.nan]))}
)


def test_blocks_round_trip_as_a_file() -> None:
    back = unpack(pack(MADE))
    assert (back.layer, back.inputs) == (MADE.layer, MADE.inputs)
    np.testing.assert_array_equal(back.exact, MADE.exact)
    np.testing.assert_array_equal(back.approximation, MADE.approximation)
    np.testing.assert_array_equal(back.spectra["a/b <c>"].approximation, MADE.spectra["a/b <c>"].approximation)


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
def test_a_damaged_file_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="no blocks of curvbench"):
        unpack(pack(MADE)[:cut])


class Planted:
    """Unpickling it would tell."""

    done: ClassVar[list[int]] = []

    def __reduce__(self) -> tuple[object, ...]:
        return Planted.done.append, (1,)


def test_nothing_in_a_file_is_executed() -> None:
    with np.load(io.BytesIO(pack(MADE))) as file:
        arrays = dict(file)
    content = io.BytesIO()
    np.savez(content, **(arrays | {"layer": np.array([Planted()], dtype=object)}))
    with pytest.raises(ValueError, match="no blocks of curvbench"):
        unpack(content.getvalue())
    assert Planted.done == []


def test_as_many_whole_units_as_fit() -> None:
    """64 rows hold three units of 21 parameters."""
    model = torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.Linear(20, 3)).double()
    instance = cb.Instance(model, torch.randn(4, 20).double(), torch.arange(4) % 3, loss="cross_entropy")
    pictures = blocks_of(cb.fit(cb.probe("diag"), instance), cb.exact_fisher(instance))
    assert pictures is not None
    assert (pictures.inputs, pictures.exact.shape) == (21, (63, 63))


@pytest.mark.parametrize("name", ["layer", "inputs", "exact", "names", "0 exact"])
@pytest.mark.parametrize("wrong", [None, np.ones((2, 3)), np.array(["a"])])
def test_files_of_another_shape_are_refused(name: str, wrong: np.ndarray | None) -> None:
    with np.load(io.BytesIO(pack(MADE))) as file:
        arrays = dict(file)
    if wrong is None:
        del arrays[name]
    elif name in ("layer", "names"):
        return  # any text is a name
    else:
        arrays[name] = wrong
    content = io.BytesIO()
    np.savez(content, **arrays)
    with pytest.raises(ValueError, match="no blocks of curvbench"):
        unpack(content.getvalue())


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="two square matrices"):
        Blocks("a", 1, np.eye(2), np.eye(3), {})
    with pytest.raises(ValueError, match="two spectra"):
        Spectrum(np.ones(2), np.ones(3))
