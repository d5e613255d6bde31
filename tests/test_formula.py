"""Cost formulas: what a text means, and by hand what the formulas of methods with variants come to."""

from __future__ import annotations

from typing import Any

import pytest

from curvbench import registry
from curvbench.meters.cost import published_cost
from curvbench.spec import LayerSize
from curvbench.spec.formula import evaluate

LINEAR = LayerSize(groups=1, outputs=4, inputs=7, positions=1)
SEQUENCE = LayerSize(groups=1, outputs=3, inputs=5, positions=6)
CONVOLUTION = LayerSize(groups=2, outputs=3, inputs=10, positions=12, kernel=9)


@pytest.mark.parametrize(
    ("formula", "values", "expected"),
    [
        ("2 N (D^2 + 3 M) / 4", {"N": 5, "D": 3, "M": 2}, 2 * 5 * (9 + 6) / 4),
        ("[N >= D] N + [N < D] min(2 N, 7) D", {"N": 2, "D": 3}, 4 * 3),
        ("[k > 0] [S = 1] 5 + (N) (N)", {"k": 2, "S": 1, "N": 3}, 5 + 9),
        ("[rule = exact] 9 + [rule != exact] N", {"rule": "exact", "N": 4}, 9),
        ("[rule = exact] 9 + [rule != exact] N", {"rule": "pi", "N": 4}, 4),
        ("max(1, floor(rank N)) - 1", {"rank": 0.3, "N": 9}, 1),
    ],
)
def test_formulas_are_read_as_they_are_meant(formula: str, values: dict[str, Any], expected: float) -> None:
    letters = {"G": 1, "M": 1, "D": 1, "S": 1, "k": 0, **values}
    size = LayerSize(letters["G"], letters["M"], letters["D"], letters["S"], letters["k"])
    assert evaluate(formula, values, [size]) == expected


def test_terms_with_a_letter_of_a_layer_are_summed_over_layers() -> None:
    values = {"N": 2, "R": 5, "L": 2, "P": 43}
    assert evaluate("L (N + R) + 3 S (N + 1) + P", values, [LINEAR, SEQUENCE]) == 2 * 7 + 3 * 7 * 3 + 43
    where = {"B": "N S"}
    assert evaluate("B + 1", {"N": 2}, [LINEAR, SEQUENCE], where) == 2 * 1 + 2 * 6 + 1


def test_a_minus_outside_of_brackets_cuts_terms_too() -> None:
    """P is no quantity of a layer: it is subtracted once, whatever stands before it is summed over layers."""
    values = {"L": 2, "P": 43}
    assert evaluate("G M D - P", values, [LINEAR, SEQUENCE]) == 28 + 15 - 43 == 0
    assert evaluate("P - G M D", values, [LINEAR, SEQUENCE]) == 0
    assert evaluate("-L + P", values, [LINEAR]) == 41


@pytest.mark.parametrize(
    "text",
    [
        *("N $ 2", "N (", "N ^", "import os", "Q + 1", "N.real", "[N = 2", "N; 3"),
        *("min(N)", "floor(N, 2)", "N / 0", "[S > x]", "[stagee = first] N", "[x > 3] N"),
    ],
)
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cost formula"):
        evaluate(text, {"N": 2}, [LINEAR])


@pytest.mark.parametrize("key", ["statistics", "invert", "precondition", "memory"])
@pytest.mark.parametrize(
    ("probe", "size", "expected"),
    [  # N = 5 samples, R = 2 columns each, so that N R = 10
        ("kfac", SEQUENCE, (6 * (5 * 25 + 10 * 9), 4.5 * (125 + 27), 2 * 15 * 8, 2 * (9 + 25))),
        ("kfac[damping_rule=pi]", SEQUENCE, (6 * (5 * 25 + 10 * 9), 0.5 * (125 + 27), 15 * 8, 2 * (9 + 25))),
        (
            "kfac[kfac_approx=reduce]",
            SEQUENCE,
            (5 * 25 + 10 * 9 + 6 * (5 * 5 + 10 * 3), 4.5 * (125 + 27), 2 * 15 * 8, 2 * (9 + 25)),
        ),
        ("cwngd", LINEAR, (4 * 5 * 7, 4 * (25 * 7 + 125 / 6), 4 * 2 * 5 * 7, 4 * 7 * 5)),
        ("cwngd", SEQUENCE, (3 * (10 * 30 + 10 * 25), 3 * 125 / 6, 3 * 25, 3 * 5 * 5)),
        ("lngd[layer_rate=none]", SEQUENCE, (6 * 5 * (25 + 3), 125 / 2 + 3, 15 * 6, 2 * 25 + 3)),
        ("lngd[layer_rate=corrected,fisher_type=type2]", SEQUENCE, (6 * 5 * (25 + 6), 65.5, 15 * (6 + 30), 53)),
        ("hylo[variant=kis]", LINEAR, (10 * 11 + 11, 1 / 6, 2 * 28 + 3, 11 + 3)),
        ("fngd[stage=shared]", LINEAR, (0, 0, 5 * 4 * 9, 5 * (7 + 8))),
        ("fngd", LINEAR, (100 * 11, 1000 / 6, 2 * 5 * 4 * 9 + 100, 5 * (7 + 8) + 200)),
        (
            "mbf[conv=avg]",
            CONVOLUTION,
            (10 * 60 * (12 + 9), 9**3 / 6, 60 * 9, 81),
        ),
        ("mbf", CONVOLUTION, (10 * 60 * (12 + 9), 6 * 9**3 / 6, 60 * 9, 6 * 81)),
    ],
)
def test_variants_of_a_method_have_their_own_cost(
    probe: str, size: LayerSize, expected: tuple[float, ...], key: str
) -> None:
    number = ("statistics", "invert", "precondition", "memory").index(key)
    cost = published_cost(registry.parse_probe(probe), [size], 5, 2)
    assert cost[key] == pytest.approx(expected[number], rel=1e-12)
