"""What methods do with one block that read all its score columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curvbench.parts.factors import is_cut
from curvbench.prediction.of_vectors import small
from curvbench.prediction.products import CHOLESKY, EIGH, INVERSE, Case
from curvbench.prediction.work import Work, slopes_of


def diag(c: Case) -> Work:
    """Squares of the score columns."""
    return Work(c.squares() + 2 * c.entries, 0, 2.0 * c.entries, c.entries, 0, slopes_of(c, 16))


def adafactor(c: Case) -> Work:
    """Row and column means of squares: of the score columns, or of the mean gradient."""
    M, D = own_matrix(c)
    kept = float(c.block.size.groups * (M + D) + 1)
    if c.of["source"] == "columns":
        return Work(c.squares() + 8 * c.entries, 0, 5.0 * c.entries + 4 * kept, kept, 0, slopes_of(c, 16))
    return Work(7.0 * c.entries, 0, 7.0 * c.entries, kept)


def own_matrix(c: Case) -> tuple[int, int]:
    """M and D of a block for a method of matrices, for which a norm's scale and shift are a column."""
    G, M, D, _, _ = c.block.size
    if not c.is_vector:
        return M, D
    own = c.block.own if D == 1 else (M, D)
    return (G * M * D, 1) if own == (M, D) else own


def ngplus(c: Case) -> Work:
    """The moment of the rows of score columns, or of the mean gradient, and its inverse."""
    G, (M, D) = c.block.size.groups, own_matrix(c)
    is_left = c.of["side"] == "outputs" or M <= D or D == 1
    n, others = (M, D) if is_left else (D, M)
    order = 1 if is_cut(n) or D == 1 else n
    if c.of["source"] == "columns":
        made = _moment(c, n, others, is_left) if not c.is_vector else 2.0 * c.N * c.R * c.entries * order
        made += G * n * order
    else:
        made = (2.0 * order + 3 + 2 * (c.of["source"] == "momentum")) * c.entries + 3 * G * n * order
    largest = 2 * (c.of["damping_rule"] == "code")
    inverse = G * n * (INVERSE * order**2 if order > 1 else 2.0) + (1 + largest) * G * n * order
    kept = 2.0 * G * (n * order + others / 2) + (c.entries if c.of["source"] == "momentum" else 0)
    return Work(made, inverse, 2.0 * c.entries * order + c.entries, kept, 0, c.stored_columns())


def _moment(c: Case, n: int, others: int, is_left: bool) -> float:
    """The sum of W W^T, or of W^T W, over the score columns."""
    G, M, D, S = c.letters
    N, R = c.N, c.R
    if is_cut(n):
        return c.squares()
    kernels = 2.0 * S**2 * (D + R * M) + 2.0 * S * n**2 * (R if is_left else 1)
    formed = 2.0 * R * M * D * (S + n)
    plain = S**2 * (D + R * M) + S * (D**2 + R * M**2) < R * M * D * (S + M + D)
    return N * G * (kernels if plain and c.block.kind != "tied" else formed)


def layer(c: Case) -> Work:
    """The Gram matrix of the block's columns, and its factor."""
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


def ief(c: Case) -> Work:
    """As ``full``, with slopes that are scaled."""
    G, M, _, S, _ = c.block.size
    found = full(c).plus(Work(float(c.N * c.R * S * G * M)))
    return found if c.of["damping_rule"] == "exact" else found._replace(precondition=3 * c.combine() + 6.0 * c.entries)


def spring(c: Case) -> Work:
    """As ``full``, all in one update; ``shared`` has the factor."""
    found = full(c)
    solve = found.precondition + 3.0 * c.entries
    return Work(found.statistics + solve, 0, 0, found.kept + c.entries, found.wide)


def cg(c: Case) -> Work:
    """Columns, and products with them."""
    return Work(0, 0, c.of["iterations"] * (2 * c.combine() + 13.0 * c.entries), c.stored_columns())


def nystrom(c: Case) -> Work:
    """Products with a test matrix, and factorizations of its image."""
    K, turns = c.of["rank"], c.of["power"] + 1
    made = turns * (2 * c.combine(K) + (4.0 * K**2 + K) * c.entries)
    steps = (4.0 * K + 2) * c.entries
    return Work(made, (8.0 * K**2 + 2 * K) * c.entries, steps, float(K * c.entries), 0, 2.0 * K * c.entries)


def fngd(c: Case) -> Work:
    """As ``layer``, or in later epochs a weighted gradient."""
    b = c.N * c.R
    if c.of["stage"] == "shared":
        return Work(0, 0, c.combine() + 8.0 * c.entries, c.stored_columns() + c.entries)
    steps = 2 * c.combine() + 2.0 * b**2 + 4 * c.entries
    return Work(c.gram() + 2.0 * b**2, CHOLESKY * b**3 + b**2, steps, c.stored_columns(), 2.0 * b**2)


def eigen(c: Case) -> Work:
    """The largest eigenvectors, made from the columns; ``shared`` has the rest."""
    K = c.of["rank"]
    return Work(c.gram() + (c.N * c.R) ** 2 + c.combine(K), 0, (4.0 * K + 2) * c.entries, float(K * c.entries))


def unit(c: Case) -> Work:
    """A block per output unit, and its factor."""
    G, M, D, _ = c.block.size[:4]
    factors, steps = G * M * D**3 * CHOLESKY, 2.0 * G * M * D**2
    return Work(c.unit_blocks() + G * M * D**2, factors, steps, 2.0 * G * M * D**2, 0, c.stored_columns())


def cwngd(c: Case) -> Work:
    """As ``unit``, or the roots of the blocks if they are smaller."""
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


def mbf(c: Case) -> Work:
    """Blocks of units or of kernels, and their factors."""
    G, M, D, _, k = c.block.size
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


def hylo(c: Case) -> Work:
    """A kernel of all scores, and the scores that are kept."""
    G, M, D, S, _ = c.block.size
    if c.block.kind == "tied":
        return Work(0, 0, 0, 1.0)
    b = c.N * c.R
    K = max(1, int(c.of["rank"] * b))
    width, height = (1, c.entries) if c.is_vector else (D, M)
    if c.of["variant"] == "kid":  # the pivots end at the kernel's rank: a sample has one mean input
        K = min(K, c.entries, c.N * G * height)
    sums = 0.0 if c.is_vector else c.N * S * G * (D + c.R * M)
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
    rounds = 6.0 * b**2 * K + 2.0 * b * K * (K - 1)
    return rounds + 2.0 * b**2 * K + b * K**2 + 2.0 * b * K**2 + CHOLESKY * K**3


def shared(name: str, N: int, R: int, of: Mapping[str, Any]) -> Work:
    """What a method does once for all blocks together."""
    b = float(N * R)
    if name == "spring":
        solves = 2.0 if of["fisher_type"] == "mc" else 4.0
        return Work(CHOLESKY * b**3 + (1 + solves) * b**2, 0, 0, 0, b**2)
    if name == "nystrom":
        return Work(0, (22 + 4 / 3) * of["rank"] ** 3, 0, of["rank"])
    if name == "mfac":
        return Work(
            0, CHOLESKY * of["memory"] ** 3 + of["memory"] ** 2, 2.0 * of["memory"] ** 2, 0, 2.0 * of["memory"] ** 2
        )
    if name == "ief" and of["damping_rule"] == "gram":
        return Work(0, CHOLESKY * b**3 + 3 * b**2, 2.0 * b**2, 0, 2 * b**2)
    if name in ("full", "ief"):  # the sum of the blocks' Gram matrices, and its factor
        return Work(0, CHOLESKY * b**3 + b**2, (2.0 if of["fisher_type"] == "mc" else 4.0) * b**2, 0, 2 * b**2)
    if name == "eigen":
        return Work(EIGH * b**3)
    if name == "ginger" and of["scope"] == "joint":
        return small(of["rank"])
    return Work()
