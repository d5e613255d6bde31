"""What methods do with one block that keep vectors of its length: moments, bases and pairs."""

from __future__ import annotations

from curvbench.prediction.products import EIGH, Case
from curvbench.prediction.work import Work


def sgdm(c: Case) -> Work:
    """The momentum buffer."""
    decay = 2.0 if c.of["weight_decay"] else 0.0
    return Work((2 + decay) * c.entries, 0, 0, c.entries)


def adam(c: Case) -> Work:
    """Two moments of the gradient."""
    return Work(7.0 * c.entries, 0, 5.0 * c.entries, 2.0 * c.entries)


def adamw(c: Case) -> Work:
    """Two moments of the gradient, and the parameters."""
    return Work(7.0 * c.entries, 0, 7.0 * c.entries, 3.0 * c.entries)


def identity(c: Case) -> Work:
    """Nothing."""
    return Work()


def ginger(c: Case) -> Work:
    """A rank-one update of a basis."""
    K = c.of["rank"]
    made, solve = 8.0 * K + 2 * K * (K + 1) + 6, 4.0 * K + 2
    update = Work(made * c.entries, 0, solve * c.entries, float(K * c.entries), 0, float((K + 1) * c.entries))
    return update.plus(small(K)) if c.of["scope"] == "per_tensor" else update


def small(rank: int) -> Work:
    """Ginger's small matrix of a basis: once for all blocks together, or once per block."""
    return Work(EIGH * (rank + 1) ** 3 + 6.0 * (rank + 1) ** 2, 0, 0, float(rank))


def qng(c: Case) -> Work:
    """One more vector, through all that are kept."""
    K = c.of["memory"]
    return Work(c.entries * (4.0 * K + 4), 0, (8.0 * K + 2) * c.entries, float(K * c.entries))


def mfac(c: Case) -> Work:
    """Products of a window with one more vector; ``of_columns.shared`` has its Gram matrix."""
    K = c.of["memory"]
    return Work((2.0 * K + 1) * c.entries, 0, (4.0 * K + 2) * c.entries, float(K * c.entries))


def lbfgs(c: Case) -> Work:
    """The two-loop recursion through as many pairs as may be kept."""
    K = c.of["memory"]
    return Work((2.0 + 8 * K) * c.entries, 0, (8.0 * K + 1) * c.entries, (2.0 * K + 1) * c.entries)


def sophia(c: Case) -> Work:
    """An average of the gradient, and one of squared gradients of drawn labels."""
    return Work((3 + 4 / c.of["draw_every"]) * c.entries, 0, 7.0 * c.entries, 2.0 * c.entries)


def hutchinson(c: Case) -> Work:
    """Products with random signs, and their mean."""
    return Work(2.0 * c.of["draws"] * c.entries, 0, 3.0 * c.entries, float(c.entries))


def adahessian(c: Case) -> Work:
    """Two moments, one of products with random signs."""
    return Work(8.0 * c.entries, 0, 5.0 * c.entries, 2.0 * c.entries)
