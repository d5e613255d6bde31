"""What every shipped method does with one block: FLOPs of its phases, and the numbers that it keeps.

A function per method, in the order of ``curvbench list``. Each follows the method's code, and tests hold the result
against what the meters count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from curvbench.prediction.passes import Passes
from curvbench.parts.factors import is_cut
from curvbench.prediction.products import CHOLESKY, EIGH, INVERSE, Case, half


class Work(NamedTuple):
    """FLOPs of one update, one refresh and one step; ``kept`` numbers in the dtype and ``wide`` ones in float64.

    ``scratch``: numbers that exist while statistics are made, beside the state.
    """

    statistics: float = 0.0
    invert: float = 0.0
    precondition: float = 0.0
    kept: float = 0.0
    wide: float = 0.0
    scratch: float = 0.0

    def plus(self, other: Work, times: float = 1.0) -> Work:
        """The sum with ``times`` as much work."""
        return Work(*(a + times * b for a, b in zip(self, other, strict=True)))


Rule = Callable[[Case], Work]
Reads = Callable[[Passes, int, Mapping[str, Any]], float]
"""FLOPs of the passes that statistics take beside the step's own gradient, from R and the hyperparameters."""


def nothing(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """The step's own gradient serves."""
    return 0.0


def scores(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """A forward pass, and a backward pass per score column of a sample."""
    return passes.forward + R * passes.inputs


def one_score(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """A forward pass, and one backward pass to the outputs of the layers."""
    return passes.forward + passes.inputs


def local_maps(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """A forward pass, and derivatives of what lies between layers: ``draws`` of them where outputs mix."""
    if R:
        return scores(passes, R, of)
    rate = passes.forward + of["terms"] * passes.inputs if of["layer_rate"] == "corrected" else 0.0
    return passes.forward + rate + (_draws(of) if of["mixes"] else 3) * passes.between


def _draws(of: Mapping[str, Any]) -> int:
    """Vectors that a local map of LNGD meets."""
    return int(of["mc_samples"] if of["fisher_type"] == "lg_mc" else of["draws"])


def another_gradient(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """The gradient for other labels."""
    return passes.gradient - passes.update


def of_statistic(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """The gradient for drawn labels; with the data's labels the step's own serves."""
    return another_gradient(passes, R, of) if of["statistic"] == "bg" else 0.0


def hessian(passes: Passes, R: int, of: Mapping[str, Any]) -> float:
    """The product of the Hessian with a vector: a gradient that is differentiated once more."""
    return 2 * passes.forward + 3 * passes.inputs + 3 * passes.parameters


# First order.


def sgdm(c: Case) -> Work:
    decay = 2.0 if c.of["weight_decay"] else 0.0
    return Work((2 + decay) * c.entries, 0, 0, c.entries)


def adam(c: Case) -> Work:
    return Work(7.0 * c.entries, 0, 5.0 * c.entries, 2.0 * c.entries)


def adamw(c: Case) -> Work:
    return Work(7.0 * c.entries, 0, 7.0 * c.entries, 3.0 * c.entries)


def identity(c: Case) -> Work:
    return Work()


# Exact in part.


def diag(c: Case) -> Work:
    return Work(c.squares() + 2 * c.entries, 0, 2.0 * c.entries, c.entries, 0, _slopes(c, 16))


def _slopes(c: Case, most: int = 1) -> float:
    """Slopes of at most so many cotangents, and the inputs."""
    return c.stored_columns() * min(c.R, most) / max(c.R, 1)


def layer(c: Case) -> Work:
    b = c.N * c.R
    solve = 4.0 * b**2 if c.of["fisher_type"] != "mc" else 2.0 * b**2
    times = 4 if c.of["fisher_type"] != "mc" else 2
    steps = times * c.combine() + solve + (11 if times == 4 else 3) * c.entries
    return Work(c.gram(), CHOLESKY * b**3 + b**2, steps, c.stored_columns(), 2.0 * b**2)


def full(c: Case) -> Work:
    """The part of one block; ``full_once`` has what all blocks share."""
    b = c.N * c.R
    shared = layer(c)
    solve = shared.precondition - (4.0 if c.of["fisher_type"] != "mc" else 2.0) * b**2
    return Work(shared.statistics + b**2, 0, solve, shared.kept, float(b**2))


def fngd(c: Case) -> Work:
    b = c.N * c.R
    if c.of["stage"] == "shared":
        return Work(0, 0, c.combine() + 8.0 * c.entries, c.stored_columns() + c.entries)
    steps = 2 * c.combine() + 2.0 * b**2 + 4 * c.entries
    return Work(c.gram() + 2.0 * b**2, CHOLESKY * b**3 + b**2, steps, c.stored_columns(), 2.0 * b**2)


def eigen(c: Case) -> Work:
    K = c.of["rank"]
    return Work(c.gram() + (c.N * c.R) ** 2 + c.combine(K), 0, (4.0 * K + 2) * c.entries, float(K * c.entries))


def unit(c: Case) -> Work:
    G, M, D, _ = c.block.size[:4]
    factors, steps = G * M * D**3 * CHOLESKY, 2.0 * G * M * D**2
    return Work(c.unit_blocks() + G * M * D**2, factors, steps, 2.0 * G * M * D**2, 0, c.stored_columns())


def cwngd(c: Case) -> Work:
    G, M, D, S, _ = c.block.size
    rows, units = c.N * (c.R if S > 1 else 1), G * M
    if rows >= D:
        return unit(c)
    made = c.formed(c.R if S > 1 else 1) + (2.0 * c.N * c.R * units if S == 1 else 0) + units * rows * D
    factors = units * (2.0 * rows**2 * D + CHOLESKY * rows**3)
    steps = units * (4.0 * rows * D + 2.0 * rows**2 + 2 * D)
    return Work(made, factors, steps, float(units * rows * D), float(units * rows**2), c.stored_columns())


def tiled(c: Case) -> Work:
    """Blocks of output units that no memory holds: every solve forms and factorizes them again."""
    G, M, D, S = c.letters
    rows = c.N * (c.R if S > 1 else 1)
    n, units = min(rows, D), G * M
    solve = units * (2.0 * rows * D * n + CHOLESKY * n**3 + 4.0 * rows * D + 2.0 * n**2)
    return Work(0, 0, c.formed(c.R if S > 1 else 1) + solve, c.stored_columns())


# Kronecker.


def kfac(c: Case) -> Work:
    if c.is_vector:
        return _vector(c)
    reduces = c.of.get("kfac_approx") == "reduce"
    made = sum(_reduced(role) if reduces else role.input_moment() + role.output_moment() for role in c.roles())
    return _solved(c, made, c.of["damping_rule"])


def _reduced(c: Case) -> float:
    """Both factors of the mean inputs and the summed gradients."""
    G, M, D, S, k = c.block.size
    sums = c.N * S * G * (D / max(k, 1) + c.R * M)
    return sums + 2.0 * c.N * G * (D * c.columns + c.R * M * c.rows * half(c.rows))


def _solved(c: Case, made: float, rule: str) -> Work:
    """A Kronecker product with statistics ``made``, under a damping rule."""
    held = sum(role.sides(1) for role in c.roles())
    if rule == "exact":
        bases = sum(n * order for n, order in _matrices(c))
        kept = held + bases + c.entries
        return Work(made, EIGH * _cubes(c) + c.entries, 2 * c.bases(2) + c.entries, kept, 0, _streamed(c))
    return Work(made, INVERSE * _cubes(c) + 2 * c.sides(0), 2 * _both(c), held + c.sides(1), 0, _streamed(c))


def _matrices(c: Case) -> list[tuple[int, int]]:
    G, M, D, _, _ = c.block.size
    return [(G * n, order) for n, order in ((M, c.rows), (D, c.columns)) if order > 1]


def _cubes(c: Case) -> float:
    return float(sum(n * order**2 for n, order in _matrices(c)))


def _both(c: Case) -> float:
    """Multiply-adds of products with both sides; half one for each entry and diagonal."""
    return sum(float(c.entries) * (order if order > 1 else 0.5) for order in (c.rows, c.columns))


def _streamed(c: Case) -> float:
    """Slopes of as many cotangents as make a product worth its while, and the inputs."""
    return _slopes(c, max(1, -(-c.block.size.outputs // max(c.N * c.block.size.positions, 1))))


def _vector(c: Case) -> Work:
    """A vector's own block, which K-FAC and its kin have by ``others``."""
    n, p = c.vector_order(), c.entries
    inverse = INVERSE * p * n**2 if n > 1 else 2.0 * p
    return Work(c.vector_moment() + p, inverse, float(p * (2 * n if n > 1 else 1)), 2.0 * p * n)


def ekfac(c: Case) -> Work:
    every, G, M, D = c.of["basis_every"], *c.block.size[:3]
    if c.is_vector:
        n, p = c.vector_order(), c.entries
        kept = (n * p if n > 1 else 0) + p
        return Work(c.vector_moment() + p + (EIGH * p * n**2 if n > 1 else 0), 0, 2.0 * p + 4 * n * p * (n > 1), kept)
    basis = sum(role.input_moment() + role.output_moment() for role in c.roles()) + EIGH * _cubes(c)
    averaged = bool(c.of["ema"])
    if averaged:
        basis += 2.0 * (_cubes(c) + c.bases())
    if c.of["scalings"] == "exact":
        entries = c.rotated_squares()
    else:
        entries = 2 * c.bases() + c.combine()
    bases = sum(n * order for n, order in _matrices(c))
    kept = bases + c.entries + averaged * c.sides(1)
    return Work(basis / every + entries, 0, 2 * c.bases(2) + 2 * c.entries, kept, 0, c.stored_columns())


def tkfac(c: Case) -> Work:
    if c.is_vector:
        return _vector(c)
    made = sum(_weighted(role) for role in c.roles())
    work = _solved(c, made, c.of["damping_rule"])
    return work._replace(invert=work.invert + 2 * c.sides(1))


def _weighted(c: Case) -> float:
    G, M, D, S, _ = c.block.size
    scaled = c.N * S * G * (4.0 * c.R * M + (0 if c.is_lookup else 3 * D))
    return c.formed_moment() + c.output_moment() + scaled


def shampoo(c: Case) -> Work:
    G, M, D, _, _ = c.block.size
    if c.block.kind == "vector" and D == 1:
        M, D = c.block.own
    orders = [(n, 1 if is_cut(n) else n) for n in (M, D)]
    made = 2.0 * G * M * D * sum(order for _, order in orders) + 2 * c.entries + sum(G * n * o for n, o in orders)
    roots = G * sum((EIGH + 2) * n * o**2 if o > 1 else 3.0 * n for n, o in orders)
    kept = 2.0 * G * sum(n * o for n, o in orders)
    return Work(made, roots, 2.0 * G * M * D * sum(o for _, o in orders), kept)


# Rescaled layers and smaller factors.


def lngd(c: Case) -> Work:
    G, M, D, S, _ = c.block.size
    has_rate = c.of["layer_rate"] == "corrected"
    rate = replace(c, R=c.of["terms"]).stored_columns() if has_rate else 0.0
    if c.block.kind in ("vector", "tied"):
        return Work(0, 0, 2.0 * c.entries, 2.0 * G * (M + D) + rate)
    N, width = c.N, 1 if c.is_lookup else D
    squares = 3.0 * c.R if c.R else 25 + 2.0 * _draws(c.of) * c.of["mixes"]
    made = 2.0 * N * S * G * width * c.columns * bands(c.columns) + N * S * G * (4.0 * width + squares * M)
    inverse = INVERSE * D * c.columns**2 * G if c.columns > 1 else 2.0 * G * D
    steps = 2.0 * G * M * D * c.columns + (1 + 4 * has_rate) * c.entries + has_rate * c.project()
    return Work(made, inverse, steps, 2.0 * G * (D * c.columns + M) + rate, 0, 2 * N * S * G * M)


def bands(order: int) -> float:
    """The share of a product R R^T that is computed in three bands."""
    return 1.0 if order < 3 else 1 / 3 + half(order // 3) / 3


def eva(c: Case) -> Work:
    G, M, D, S, k = c.block.size
    if c.block.kind in ("vector", "tied"):
        return Work(0, 0, 0, 1.0)
    sums = c.N * S * G * (M + (1 if c.is_lookup else D / max(k, 1)))
    return Work(sums, 0, 5.0 * c.entries, float(G * (M + D)))


def thor(c: Case) -> Work:
    if c.is_vector:
        return _vector(c)
    split, (G, M, D, _, _) = c.of["split"], c.block.size
    m, d = (1 if c.rows == 1 else split), (1 if c.columns == 1 else split)
    made = sum(2.0 * role.N * role.block.size.positions * G * _pieces_of(role, split) for role in c.roles())
    held = sum(_pieces(role, split) for role in c.roles())
    blocks = G * (cut(M, m, 2) + cut(D, d, 2))
    inverse = INVERSE * G * (cut(M, m, 3) + cut(D, d, 3)) + 2.0 * G * (M + D)
    steps = 2.0 * c.entries / M * cut(M, m, 2) + 2.0 * c.entries / D * cut(D, d, 2)
    return Work(made + held, inverse, steps, held + blocks, 0, _streamed(c))


def cut(order: int, rows: int, power: int) -> float:
    """The sum of a power of the orders of the blocks into which a factor is cut."""
    return float(order // rows * rows**power + (order % rows) ** power)


def _pieces(c: Case, split: int) -> float:
    """Numbers in the blocks of both factors."""
    G, M, D, _, _ = c.block.size
    return G * (cut(M, 1 if c.rows == 1 else split, 2) + cut(D, 1 if c.columns == 1 else split, 2))


def _pieces_of(c: Case, split: int) -> float:
    """Multiply-adds of one position in the blocks of both factors."""
    _, M, D, _, _ = c.block.size
    inputs = 0.5 if c.is_lookup else cut(D, 1 if c.columns == 1 else split, 2)
    return inputs + c.R * cut(M, 1 if c.rows == 1 else split, 2)


def skfac(c: Case) -> Work:
    if c.is_vector:
        return _vector(c)
    G, M, D, S, k = c.block.size
    N, b = c.N, c.N * c.R
    made = N * S * G * ((1 if c.is_lookup else D / max(k, 1)) + c.R * M) + 1.0 * G * (N * D + b * M)
    work = Work(made, 0, 0, 0, 0, c.stored_columns())
    for n, rows, is_diagonal in ((M, b, c.rows == 1), (D, N, c.columns == 1)):
        if is_diagonal:
            work = work.plus(Work(0, 2.0 * n * G, 1.0 * c.entries, 2.0 * n * G))
        else:
            other = c.entries / n
            inverse = G * (2.0 * rows**2 * n + CHOLESKY * rows**3)
            step = other * (4.0 * rows * n + 2.0 * rows**2) + 2 * c.entries
            work = work.plus(Work(0, inverse, step, float(G * (rows * n + rows**2))))
    return work


def mbf(c: Case) -> Work:
    G, M, D, S, k = c.block.size
    role = c.block.roles[0]
    rows = G * M
    if k:
        bias = role.bias
        blocks, order = rows * (D - bias) // k, k
        made = c.formed() + 2.0 * c.N * c.R * G * M * (D - bias) * k + 2.0 * c.N * c.R * rows * bias
        if c.of["conv"] == "avg":
            blocks = 1
    elif c.of["fc"] == "avg":
        blocks, order, made = 1, D, c.contracted_outputs()
    else:
        blocks, order, made = rows, D, c.unit_blocks()
    step = 2.0 * rows * (D if not k else D - role.bias) * order
    kept = 2.0 * blocks * order**2 + (rows if k and role.bias else 0)
    return Work(made + blocks * order**2, CHOLESKY * blocks * order**3, step, kept, 0, c.stored_columns())


# Low rank.


def hylo(c: Case) -> Work:
    G, M, D, S, k = c.block.size
    if c.block.kind == "tied":
        return Work(0, 0, 0, 1.0)
    b = c.N * c.R
    K = max(1, int(c.of["rank"] * b))
    width, height = (1, c.entries) if c.is_vector else (D, M)
    sums = 0.0 if c.is_vector else c.N * S * G * (D / max(k, 1) + c.R * M)
    kernel = G * (2.0 * (width + height) * b**2 + 2 * b**2)
    if c.of["variant"] == "kis":
        chosen = 3.0 * b * G * (width + height) + G * (2.0 * (width + height) * K**2) + 4 * K**3
    else:
        chosen = kernel + _pivots(b, K) + G * 2.0 * (width + height) * K**2 + 4 * K**3
    back = 2.0 * K if K > 1 else 1.0
    steps = (2.0 * K + back + 2) * c.entries + 3.0 * K * G * width + 6.0 * K**2
    return Work(
        sums + chosen,
        K**3 // 3 + K,
        steps,
        K * G * float(width + height) + K**2,
        2.0 * K**2,
        c.stored_columns(),
    )


def _pivots(b: int, K: int) -> float:
    """``parts.interpolation.interpolate``: K rounds on a kernel (b, b), then a triangular solve."""
    rounds = sum(6.0 * b**2 + 4 * b * k for k in range(K))
    return rounds + 2.0 * b**2 * K + b * K**2 + 2.0 * b * K**2 + CHOLESKY * K**3


def ginger(c: Case) -> Work:
    K = c.of["rank"]
    return Work(c.entries * (8.0 * K + 2 * K * (K + 1) + 6), 0, (4.0 * K + 2) * c.entries, float(K * c.entries))


def qng(c: Case) -> Work:
    K = min(c.of["memory"], c.of["updates"])
    return Work(c.entries * (4.0 * K + 4), 0, (8.0 * K + 2) * c.entries, float(K * c.entries))


def lbfgs(c: Case) -> Work:
    K = min(c.of["memory"], c.of["updates"])
    return Work((2.0 + 8 * K) * c.entries, 0, (8.0 * K + 1) * c.entries, (2.0 * K + 1) * c.entries)


def shared(name: str, N: int, R: int, of: Mapping[str, Any]) -> Work:
    """What a method does once for all blocks together."""
    b = float(N * R)
    if name == "full":  # the sum of the blocks' Gram matrices, and its factor
        return Work(0, CHOLESKY * b**3 + b**2, (2.0 if of["fisher_type"] == "mc" else 4.0) * b**2, 0, 2 * b**2)
    if name == "eigen":
        return Work(EIGH * b**3)
    if name == "ginger":
        order = of["rank"] + 1
        return Work(EIGH * order**3 + 6.0 * order**2, 0, 0, float(of["rank"]))
    return Work()
