"""Which convention each peer uses, and how far it is from ours once both mean the same; prints Markdown.

    python suites/peers/conformance.py > docs/peers.md

Everything is float64 and dense. Sampled Fishers are compared at the labels that the peer has drawn.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from curvbench import Instance, data, exact_fisher, fit, probe, registry
from curvbench.fisher import collect
from curvbench.operators import BlockDiagonal, Kronecker, Operator, RotatedDiagonal
from curvbench.parts.factors import kfac_factors

peers: Any = registry.load_file(Path(__file__).with_name("probes.py"))
DAMPING = 1e-3
KINDS = ("type-2", "mc", "empirical")
HEADER = """\
# Peers: conventions, and what is left once they are aligned

Made by `python suites/peers/conformance.py` with {}.
`pip install -e '.[peers]'` installs both peers; where torch is a CPU build, give pip a constraints file with its exact
version, or torchvision, which backpack and NNGeometry ask for and neither imports here, replaces it.

## Conventions
"""
MEASURED = """\
## Agreement

Relative Frobenius distances from ours in float64. `scale` is that of the peer's own product with the gradient, before
any conversion. `matrix`: the converted matrix; `step`: the peer's own damped inverse times the gradient, damping 1e-3.
Sampled labels are compared at those the peer has drawn. curvlinops inverts its exact matrices by conjugate gradients,
whose own error the step shows. EKFAC with `reduce` depends on the eigenvectors of a null space in which scores lie: its
agreement is that of two factorizations of nearly singular factors, and curvbench offers it with `expand` alone.
curvlinops draws the targets of a regression's sampled Fisher with a float32 root of 1/2, which is off by 1.7e-8.
"""
CONVENTIONS = """\
| | curvbench | curvlinops | NNGeometry |
|---|---|---|---|
| scale, cross entropy | mean over loss terms | the same (`reduction="mean"`) | the same |
| scale, regression | 1/2 \\|f - y\\|^2: (1/N) sum J^T J | `MSELoss`: 2/C times, 4/C times with data labels | 1 |
| positions S of a layer (expand) | A a sum, B a mean | A a mean, B a sum: A / S and S B, one product | as curvbench |
| forward-only (not compared) | A a sum, B = I | A a mean, B = I: 1 / S of ours per layer | none |
| bias | joint, last column of A | separate by default: B (x) diag(A, 1); joint by option | joint, last column of A |
| factor order | B (x) A, rows of [W \\| b] | (A, B), tensors per parameter | (a, g), tensors per parameter |
| type-2 columns | C - 1 | C | C - 1, tails as 1 - cumsum(p) with an epsilon |
| sampled labels | own generator, `seed` | own generator, `seed` | torch's global generator |
| damping of K-FAC | `exact`: of the product; `pi`, `factored` | `each` (default): added to A and to B, not its root; \
`exact`; `pi` | `pi`; `solve` by least squares at every step |
| damping of EKFAC | of the matrix | of the matrix | of the matrix |
| reduce | K-FAC | K-FAC, EKFAC | none |
| groups of a convolution | a factor pair per group | one pair, of the mean over groups | none |

**Several loss terms per sample.** In a sequence whose T tokens are T loss terms, curvbench takes a score column per
loss term everywhere. With `reduce`, B is the mean over terms of u u^T, u the gradient of one term's loss (one column r
of its curvature's root) at the layer's output, summed over the positions, and A the mean over samples of the mean
input's a a^T. curvlinops sends all terms of a sample back at once (outputs flattened to (N T, C),
`num_per_example_loss_terms=T`), so that its B has (sum_t u_t) (sum_t u_t)^T over the same N T: cross terms between the
tokens of a sample, which the Fisher has not. A is the same. With labels drawn from the model they vanish in
expectation; with data labels and with type-2 columns they do not, and the matrix depends on the root of the curvature:
columns of one class point the same way in every token, so that B is up to T times as large. On a two-layer network
whose tokens meet (N = 3, T = 4, C = 3) the trace of B is 3.9 times ours with type-2 and 1.0 to 1.2 times with data
labels, and the relative error against the exact layer blocks 2.9 and 0.78, ours 0.18 and 0.31. `expand` has the same
cross terms in curvlinops where a position reaches several terms (attention), and none where it reaches its own alone.
The paper of `reduce` (Eschenhagen et al. 2023) has one loss term per sample, where all of this agrees. NNGeometry has
no `reduce`. None of this is among the networks below, which have one loss term per sample.
"""


@dataclass(frozen=True)
class Comparison:
    """One variant of a peer on one network, next to ours.

    ``raw``: length of the peer's own product with the gradient along ours, over ours, nothing converted but the order
    of the entries; ``matrix`` and ``step``: relative distance of the converted matrix, and of the step that the peer's
    own damped inverse makes, from ours.
    """

    case: str
    variant: str
    raw: float
    matrix: float
    step: float


def mlp(loss: str = "cross_entropy") -> Instance:
    """The 64-20-20-20-20-10 network on 128 digits, at initialisation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), *_dense(64, 20, 20, 20, 20, 10)).double()
    return _on_digits(model, loss, 128)


def cnn() -> Instance:
    """Two convolutions, the first with stride and bias, the second without a bias, and a linear layer."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.Tanh()]
    return _on_digits(nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 10)).double())


CASES = {"MLP": mlp, "CNN": cnn, "MLP, regression": lambda: mlp("gaussian")}


def _dense(*widths: int) -> list[nn.Module]:
    return [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.Tanh())][:-1]


def _on_digits(model: nn.Module, loss: str = "cross_entropy", n: int = 128) -> Instance:
    digits = data.load("digits", None)
    targets = digits.train_targets[:n]
    if loss == "gaussian":
        targets = nn.functional.one_hot(targets, 10).double()
    return Instance(model.eval(), digits.train_inputs[:n].double(), targets, loss)


def variants() -> Iterator[Any]:
    """Every peer in every convention that it knows."""
    for kind in KINDS:
        yield peers.CurvlinopsGgn(kind)
        for approx in ("expand", "reduce"):
            for bias in ("joint", "separate"):
                yield peers.CurvlinopsKfac(kind, kfac_approx=approx, bias=bias)
                yield peers.CurvlinopsEkfac(kind, kfac_approx=approx, bias=bias)
        yield peers.NngeometryKfac(kind)
        yield peers.NngeometryEkfac(kind)
    yield peers.CurvlinopsKfac(damping_rule="pi")
    yield peers.CurvlinopsKfac(damping_rule="each")


def compare(case: str, instance: Instance, peer: Any) -> Comparison:
    """A peer's variant next to ours in the peer's convention."""
    known = at_drawn_labels(instance, peer) if peer.fisher_type == "mc" else instance
    expected = ours(known, peer, "empirical" if peer.fisher_type == "mc" else peer.fisher_type)
    state = peer.refresh(peer.fit(instance))
    gradient = instance.gradient()
    parts = gradient.split([block.size for block in expected])
    matrices = [block.to_dense() for block in expected]
    product = torch.cat([matrix @ part for matrix, part in zip(matrices, parts, strict=True)])
    positions = [size.positions if approx(peer) == "expand" else 1 for size in instance.sizes.values()]
    inverses = damped_inverses(expected, peer, positions)
    step = torch.cat([inverse @ part for inverse, part in zip(inverses, parts, strict=True)])
    operator = peer.operator(state)
    found = [block.to_dense() for block in (operator.blocks if isinstance(operator, BlockDiagonal) else [operator])]
    return Comparison(
        case,
        peer.label,
        float(own_product(state, gradient) @ product / (product @ product)),
        _distance(torch.cat([f.flatten() for f in found]), torch.cat([m.flatten() for m in matrices])),
        _distance(peer.precondition(state, gradient), step),
    )


def approx(peer: Any) -> str:
    """What the peer does with the positions of a layer."""
    return getattr(peer, "kfac_approx", "expand")


def own_product(state: Any, vector: Tensor) -> Tensor:
    """The product as the peer computes it, with nothing of ours but the order of the entries."""
    if hasattr(state.peer, "mv"):
        return peers.from_pvector(state.batch, state.peer.mv(peers.as_pvector(state, vector)))
    return state.as_vector(state.peer @ state.as_list(vector))


def ours(instance: Instance, peer: Any, fisher_type: str) -> Sequence[Operator]:
    """Our blocks of the peer's method in the peer's convention: positions, bias and labels, but not its scale."""
    name, apart = type(peer).__name__, getattr(peer, "bias", "joint") == "separate"
    if name == "CurvlinopsGgn":
        return [exact_fisher(instance, fisher_type)]
    if name.endswith("Ekfac"):
        columns = collect(instance, fisher_type)
        factors = [kfac_factors(c, instance.terms, approx(peer)) for c in columns]
        split = [with_bias_apart(f) if apart and c.layer.bias else f for f, c in zip(factors, columns, strict=True)]
        bases = [factor.rotated for factor in split]
        squares = [c.squares(b.left_basis, b.right_basis) / instance.terms for c, b in zip(columns, bases, strict=True)]
        return [RotatedDiagonal(b.left_basis, b.right_basis, s) for b, s in zip(bases, squares, strict=True)]
    blocks = fit(probe("kfac", fisher_type=fisher_type, kfac_approx=approx(peer)), instance).blocks
    covers = [layer.bias and apart for layer in instance.layers]
    return [with_bias_apart(block) if split else block for block, split in zip(blocks, covers, strict=True)]


def with_bias_apart(factor: Kronecker) -> Kronecker:
    """Our K-FAC without what it says between weights and bias: zeros in the last row and column of A."""
    right = factor.right.clone()
    right[:, -1, :-1] = right[:, :-1, -1] = 0
    return Kronecker(factor.left, right)


def damped_inverses(blocks: Sequence[Operator], peer: Any, positions: Sequence[int]) -> Iterator[Tensor]:
    """The inverse that the peer's damping stands for, dense."""
    rule = getattr(peer, "damping_rule", "exact")
    for block, S in zip(blocks, positions, strict=False):  # the GGN is one block of all layers
        if rule == "exact":
            yield torch.linalg.inv(_shifted(block.to_dense(), DAMPING))
            continue
        assert isinstance(block, Kronecker)
        A, B = block.right[0] / S, block.left[0] * S
        pi = float((A.trace() / len(A)) / (B.trace() / len(B))) ** 0.5
        left, right = (DAMPING, DAMPING) if rule == "each" else (DAMPING**0.5 / pi, DAMPING**0.5 * pi)
        yield torch.kron(torch.linalg.inv(_shifted(B, left)), torch.linalg.inv(_shifted(A, right)))


def at_drawn_labels(instance: Instance, peer: Any) -> Instance:
    """The instance with the labels that the peer draws for its seed as targets: sampled there, empirical here."""
    outputs = instance.outputs()
    if type(peer).__name__.startswith("Nngeometry"):
        with torch.random.fork_rng():
            torch.manual_seed(peer.seed)
            next(iter(DataLoader(TensorDataset(instance.targets))))  # a loader draws a seed for its workers
            labels = torch.multinomial(outputs.softmax(1), 1, replacement=True)[:, 0]
        return Instance(instance.model, instance.inputs, labels, instance.loss)
    generator = torch.Generator().manual_seed(peer.seed)
    if instance.loss == "cross_entropy":
        targets = outputs.softmax(1).multinomial(1, generator=generator)[:, 0]
    else:  # it draws with variance 1/2, that of the density exp(-|f - y|^2)
        targets = outputs + torch.randn(outputs.shape, dtype=outputs.dtype, generator=generator)
    return Instance(instance.model, instance.inputs, targets, instance.loss)


def _shifted(matrix: Tensor, damping: float) -> Tensor:
    return matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def measured() -> Iterator[Comparison]:
    """Every variant on every network that it covers."""
    for name, make in CASES.items():
        instance = make()
        for peer in variants():
            alike = instance.loss == "cross_entropy" or getattr(peer, "damping_rule", "exact") != "each"
            if alike and peer.unsupported(instance) is None:
                yield compare(name, instance, peer)


def table(rows: Iterable[Comparison]) -> Iterator[str]:
    """Markdown."""
    yield "| network | peer | scale | matrix | step |"
    yield "|---|---|---|---|---|"
    for row in rows:
        yield f"| {row.case} | `{row.variant}` | {row.raw:.6g} | {row.matrix:.1e} | {row.step:.1e} |"


def main() -> int:
    """Print the report; 2 where a peer is not installed."""
    warnings.simplefilter("ignore")
    try:
        versions = [peers.installed(name) for name in peers.DISTRIBUTIONS]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(HEADER.format(", ".join([*versions, f"torch {torch.__version__}"])))
    print(CONVENTIONS)
    print(MEASURED)
    for line in table(measured()):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
