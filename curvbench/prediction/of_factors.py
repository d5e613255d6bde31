"""What methods do with one block that keep a factor for its inputs and one for its outputs."""

from __future__ import annotations

from dataclasses import replace

from curvbench.parts.factors import is_cut
from curvbench.prediction.products import CHOLESKY, EIGH, INVERSE, POWER, Case, half
from curvbench.prediction.work import Work, draws_of, slopes_of


def kfac(c: Case) -> Work:
    """Both factors, of a tied block those of each role."""
    if c.is_vector:
        return _vector(c)
    reduces = c.of.get("kfac_approx") == "reduce"
    made = sum(_reduced(role) if reduces else role.input_moment() + role.output_moment() for role in c.roles())
    return _solved(c, made, c.of["damping_rule"])


def _reduced(c: Case) -> float:
    """Both factors of the mean inputs and the summed gradients."""
    G, M, D, S, _ = c.block.size
    sums = c.sums_of_patches + c.N * S * G * c.R * M
    return sums + 2.0 * c.N * G * (D * c.columns + c.R * M * c.rows * half(c.rows))


def _solved(c: Case, made: float, rule: str) -> Work:
    """A Kronecker product with statistics ``made``, under a damping rule."""
    held = sum(role.sides(1) for role in c.roles())
    if rule == "exact":
        bases = sum(n * order for n, order in _matrices(c))
        kept = held + bases + c.entries
        steps = 2 * c.bases(2) + c.entries + _polar_steps(c)
        return Work(made, EIGH * _cubes(c) + c.entries, steps, kept, 0, _streamed(c))
    inverse = EIGH + 2 if c.of.get("polar") == "whitened" else INVERSE
    steps = 2 * _both(c) + _polar_steps(c)
    return Work(made, inverse * _cubes(c) + 2 * c.sides(0), steps, held + c.sides(1), 0, _streamed(c))


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
    return slopes_of(c, max(1, -(-c.block.size.outputs // max(c.N * c.block.size.positions, 1))))


def _vector(c: Case) -> Work:
    """A vector's own block, which K-FAC and its kin have by ``others``."""
    n, p = c.vector_order(), c.entries
    inverse = INVERSE * p * n**2 if n > 1 else 2.0 * p
    return Work(c.vector_moment() + p, inverse, float(p * (2 * n if n > 1 else 1)), 2.0 * p * n)


def adafisher(c: Case) -> Work:
    """The diagonals of both factors, mapped to the unit interval if ``norm`` says so."""
    mapped = 6.0 if c.of["norm"] == "minmax" else 0.0
    if c.is_vector:
        return Work(c.vector_moment() + c.entries, 0, (2 + mapped / 2) * c.entries, float(c.entries))
    made, kept = 0.0, 0.0
    for role in c.roles():
        G, M, D, S, _ = role.block.size
        made += 2.0 * role.N * S * G * role.R * M + _input_squares(role)
        kept += G * (M + D)
    return Work(made, 0, 5.0 * c.entries + mapped * c.sides(0), kept, 0, _streamed(c))


def _input_squares(c: Case) -> float:
    """The sum of squares of the inputs over samples and positions."""
    G, _, D, S, k = c.block.size
    return float(c.N * S) if c.is_lookup else c.N * S * G * D * (4.0 / k if k else 2.0)


def ingd(c: Case) -> Work:
    """Both factors of K-FAC, and a step of a root of the inverse of each."""
    if c.is_vector:
        return Work(c.vector_moment() + 2 * c.entries, 0, float(c.entries), float(c.entries))
    made = sum(role.input_moment() + role.output_moment() for role in c.roles())
    G, M, D, _, _ = c.block.size
    orders = [
        (M, 1 if c.of["outputs"] == "diagonal" else c.rows),
        (D, 1 if c.of["inputs"] == "diagonal" else c.columns),
    ]
    steps = G * sum(6.0 * n * order**2 + 13.0 * n * order for n, order in orders)
    both = sum(4.0 * c.entries * order if order > 1 else 2.0 * c.entries for _, order in orders)
    return Work(made + steps, 0, both, 2.0 * G * sum(n * order for n, order in orders), 0, c.stored_columns())


def ekfac(c: Case) -> Work:
    """Both factors, their bases, and squares in these bases."""
    every = c.of["basis_every"]
    if c.is_vector:
        n, p = c.vector_order(), c.entries
        bases = n * p if n > 1 else 0
        made = c.vector_moment() + p + EIGH * bases * n
        return Work(made, 0, 2.0 * p + 4 * bases, float(bases + p))
    basis = sum(role.input_moment() + role.output_moment() for role in c.roles()) + EIGH * _cubes(c)
    averaged = bool(c.of["ema"])
    if averaged:
        basis += 2.0 * (_cubes(c) + c.bases())
    if c.of["scalings"] == "exact":
        entries = c.rotated_squares()
    else:
        entries = 2 * c.bases() + c.combine()
    bases = sum(n * order for n, order in _matrices(c))
    kept = float(bases + c.entries) + averaged * c.sides(1)
    return Work(basis / every + entries, 0, 2 * c.bases(2) + 2 * c.entries, kept, 0, c.stored_columns())


def tkfac(c: Case) -> Work:
    """Both factors, each weighted by the other side's lengths."""
    if c.is_vector:
        return _vector(c)
    made = sum(_weighted(role) for role in c.roles())
    work = _solved(c, made, c.of["damping_rule"])
    return work._replace(invert=work.invert + 2 * c.sides(1))


def _weighted(c: Case) -> float:
    G, M, D, S, _ = c.block.size
    scaled = c.N * S * G * (4.0 * c.R * M + (0 if c.is_lookup else 3 * D))
    return c.formed_moment() + c.output_moment() + scaled


def tnt(c: Case) -> Work:
    """Both contractions of the score columns."""
    if c.is_vector:
        return _vector(c)
    right = c.squares() if c.is_lookup else c.contracted_outputs()
    work = _solved(c, c.contracted_inputs() + right, c.of["damping_rule"])
    return work._replace(invert=work.invert + 2 * c.sides(1))


def shampoo(c: Case) -> Work:
    """Both moments of the gradient, and their roots, of every sub-matrix."""
    G, M, D = _own_matrix(c)
    block = c.of["block"] or max(M, D)
    rows, columns = (n if c.of["one_sided"] else min(n, block) for n in (M, D))
    tiles = G * M * D / (rows * columns)
    orders = [(n, 1 if is_cut(n) or n > block else n) for n in (rows, columns)]
    held = tiles * sum(n * o for n, o in orders)
    made = 2.0 * c.entries * sum(order for _, order in orders) + 2 * c.entries + held * (1 if c.of["decay"] == 1 else 3)
    roots = tiles * sum((EIGH + 2) * n * o**2 if o > 1 else 3.0 * n for n, o in orders)
    whitened = 1 + (c.of["polar"] == "whitened")
    steps = 2.0 * whitened * c.entries * sum(o for _, o in orders)
    polar = 0.0 if c.of["polar"] == "none" else _polar_factors(tiles, rows, columns) + 4.0 * (whitened - 1) * c.entries
    every = c.of["root_every"]
    kept = 2 * held + (0 if c.of["graft"] in ("none", "sgd") else c.entries)
    return Work(made + (every > 1) * roots / every, (every == 1) * roots, steps + polar, kept)


def muon(c: Case) -> Work:
    """Two averages of the gradient, and the polar factor of one."""
    G, M, D = _own_matrix(c)
    n, wide, averages = min(M, D), max(M, D), 1 + c.of["nesterov"]
    if c.of["polar_by"] == "exact":
        polar = _polar_factors(G, M, D)
    else:
        polar = G * c.of["ns_steps"] * (4.0 * n**2 * wide + 2 * n**3) + 3 * c.entries
    scaled = c.entries * (c.of["scale"] == "match_rms_adamw" or (c.of["scale"] == "original" and M > D))
    return Work(3.0 * averages * c.entries, 0, polar + scaled, float(averages * c.entries))


def _polar_factors(G: float, M: int, D: int) -> float:
    """FLOPs of exact polar factors of G matrices."""
    n, wide = min(M, D), max(M, D)
    return G * ((EIGH + 2) * n**3 + 2.0 * (1 + half(n)) * n**2 * wide + 2 * n**2)


def _polar_steps(c: Case) -> float:
    """FLOPs that a step by polar factors adds to those of the solve."""
    if c.of.get("polar", "none") == "none":
        return 0.0
    whitened = 2 * _both(c) + 4.0 * c.entries if c.of["polar"] == "whitened" else 0.0
    return _polar_factors(*c.block.size[:3]) + whitened


def _own_matrix(c: Case) -> tuple[int, int, int]:
    """G, M and D of the matrix that a method of matrices reads: of a vector the parameter's own."""
    G, M, D, _, _ = c.block.size
    return (1, *c.block.own) if c.block.kind == "vector" and D == 1 else (G, M, D)


def psgd(c: Case) -> Work:
    """Terms of both factors, and the step of each."""
    G, M, D, _, _ = c.block.size
    if c.block.kind == "vector" and D == 1:
        M, D = c.block.own
    is_eq, made, steps, kept = c.of["criterion"] == "EQ", 2.0 * c.entries, 0.0, 0.0
    for n, is_diagonal in ((M, is_cut(M)), (D, is_cut(D) or c.is_lookup)):
        order = 1 if is_diagonal else n
        products = (7.0 if is_eq else 6.0) * c.entries * order
        made += (6.0 * c.entries + 4 * G * n) if is_diagonal else products + G * (2.0 * n**3 + 8 * n**2)
        steps += (2.0 if is_diagonal else 4.0 * n) * c.entries
        kept += G * n * order
    return Work(made, 0, steps, kept)


def soap(c: Case) -> Work:
    """Moments and bases of both sides, and averages of gradients and of squares in the bases."""
    orders = _sides_of_bases(c)
    is_kl, products = c.of["basis"] == "kl", 2.0 * c.entries * sum(orders)
    made = 2 * products + 8.0 * c.entries + is_kl * (2.0 * c.entries * sum(orders[1:]) + 6 * c.entries)
    return Work(
        made + _drawn(c, products) + _power(c, orders), 0, products + 4 * c.entries, _of_bases(c, orders) + c.entries
    )


def klshampoo(c: Case) -> Work:
    """Whitened moments, bases and eigenvalues of both sides, and the averaged gradient."""
    orders = _sides_of_bases(c)
    G, M, D, _, _ = c.block.size
    products = 2.0 * c.entries * sum(orders)
    made = 2 * products + 2.0 * c.entries * sum(orders[1:]) + 11 * c.entries
    kept = _of_bases(c, orders) + 2 * G * (M + D)
    return Work(made + _drawn(c, products) + _power(c, orders), 0, products + 4 * c.entries, kept)


def _drawn(c: Case, products: float) -> float:
    """The rotation of the data's gradient, which is not that of the moments."""
    return 0.0 if c.of["statistic"] == "bg_data" else products


def _power(c: Case, orders: tuple[int, ...]) -> float:
    """A step's share of new bases, into which the averaged gradient is turned."""
    turn = 4.0 * c.entries * sum(orders)
    return (c.block.size.groups * sum(POWER * n**3 for n in orders) + turn) / c.of["basis_every"]


def _sides_of_bases(c: Case) -> tuple[int, ...]:
    """The orders of the sides that have an eigenbasis, of at most ``max_precond_dim`` rows."""
    (M, D), is_plain = c.block.own, c.is_vector and (c.block.size.inputs > 1 or min(c.block.own) == 1)
    return tuple(n for n in (M, D) if n <= c.of["max_precond_dim"] and not is_plain)


def _of_bases(c: Case, orders: tuple[int, ...]) -> float:
    """Numbers of moments, bases and the averaged gradient."""
    return 2.0 * c.block.size.groups * sum(n**2 for n in orders) + c.entries


def lngd(c: Case) -> Work:
    """An input factor with weights, and a diagonal; the scores too, if the layer's rate needs them."""
    G, M, D, S, k = c.block.size
    has_rate = c.of["layer_rate"] == "corrected"
    rate = replace(c, R=c.of["terms"]).stored_columns() if has_rate else 0.0
    if c.block.kind in ("vector", "tied"):
        return Work(0, 0, 2.0 * c.entries, 2.0 * G * (M + D) + rate)
    N, width = c.N, 1 if c.is_lookup else D
    squares = 3.0 * c.R if c.R else 25 + 2.0 * draws_of(c.of) * c.of["mixes"]
    weighted = 2.0 * N * S * G * width * c.columns * half(c.columns, bands=3) + N * S * G * width
    moment = c.input_moment() if c.of["positions"] == "mean" and not c.has_diagonal_inputs else weighted
    made = moment + N * S * G * (3.0 * width / max(k, 1) + squares * M)
    inverse = INVERSE * D * c.columns**2 * G if c.columns > 1 else 2.0 * G * D
    steps = 2.0 * G * M * D * c.columns + (1 + 4 * has_rate) * c.entries + has_rate * c.project()
    return Work(made, inverse, steps, 2.0 * G * (D * c.columns + M) + rate, 0, 2 * N * S * G * M)


def eva(c: Case) -> Work:
    """Two mean vectors; the plain gradient where the paper is silent."""
    G, M, D, S, k = c.block.size
    if c.block.kind in ("vector", "tied"):
        return Work(0, 0, 0, 1.0)
    sums = c.N * S * G * (M + (1 if c.is_lookup else D / max(k, 1))) + S * G * D * (not c.is_lookup)
    return Work(sums, 0, 5.0 * c.entries + 4.0 * G * (M + D), float(G * (M + D)))


def thor(c: Case) -> Work:
    """Both factors, cut to blocks."""
    if c.is_vector:
        return _vector(c)
    split, (G, M, D, _, _) = c.of["split"], c.block.size
    m, d = (1 if c.has_diagonal_outputs else split), (1 if c.has_diagonal_inputs else split)
    made = sum(2.0 * role.N * role.block.size.positions * G * _pieces_of(role, split) for role in c.roles())
    held = sum(_pieces(role, split) for role in c.roles())
    blocks = G * (cut(M, m, 2) + cut(D, d, 2))
    inverse = INVERSE * G * (cut(M, m, 3) + cut(D, d, 3)) + 2.0 * G * (M + D)
    steps = sum(float(c.entries) * (2 * cut(n, rows, 2) / n if rows > 1 else 1) for n, rows in ((M, m), (D, d)))
    return Work(made + held, inverse, steps, held + blocks, 0, _streamed(c))


def cut(order: int, rows: int, power: int) -> float:
    """The sum of a power of the orders of the blocks into which a factor is cut."""
    return float(order // rows * rows**power + (order % rows) ** power)


def _pieces(c: Case, split: int) -> float:
    """Numbers in the blocks of both factors."""
    G, M, D, _, _ = c.block.size
    return G * (cut(M, 1 if c.has_diagonal_outputs else split, 2) + cut(D, 1 if c.has_diagonal_inputs else split, 2))


def _pieces_of(c: Case, split: int) -> float:
    """Multiply-adds of one position in the blocks of both factors."""
    _, M, D, _, _ = c.block.size
    inputs = 0.5 if c.is_lookup else cut(D, 1 if c.has_diagonal_inputs else split, 2)
    return inputs + c.R * cut(M, 1 if c.has_diagonal_outputs else split, 2)


def skfac(c: Case) -> Work:
    """Roots of both factors, inverted through the samples."""
    if c.is_vector:
        return _vector(c)
    G, M, D, S, _ = c.block.size
    N, b = c.N, c.N * c.R
    made = c.sums_of_patches + N * S * G * c.R * M + 1.0 * G * (N * D + b * M)
    work = Work(made, 0, 0, 0, 0, c.stored_columns())
    for n, rows, is_diagonal in ((M, b, c.has_diagonal_outputs), (D, N, c.has_diagonal_inputs)):
        if is_diagonal:
            work = work.plus(Work(0, 2.0 * n * G, 1.0 * c.entries, 2.0 * n * G))
        else:
            other = c.entries / n
            inverse = G * (2.0 * rows**2 * n + CHOLESKY * rows**3)
            step = other * (4.0 * rows * n + 2.0 * rows**2) + 2 * c.entries
            work = work.plus(Work(0, inverse, step, float(G * (rows * n + rows**2))))
    return work
