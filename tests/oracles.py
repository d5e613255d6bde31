"""The judges: dense float64 matrices, written the obvious way, importing nothing of what they judge.

A network maps inputs (N, ...) to outputs (N, C) or (N, T, C); every (sample, token) with a valid target is a
loss term, and every matrix is a mean over the loss terms. A parameter vector is the row-major ``[W | b]`` of
each Linear and Conv layer, in ``named_modules`` order. Loops over samples, terms, positions and classes are
deliberate: one sample at a time also proves that samples do not couple.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORED = -100


def covered_layers(model: nn.Module) -> dict[str, Any]:
    """The layers a parameter vector consists of, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)}


def matrix_size(layer: Any) -> int:
    """Entries of ``[W | b]``."""
    return layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel())


def layer_slices(model: nn.Module) -> dict[str, slice]:
    """Where each layer lies in the parameter vector."""
    slices, start = {}, 0
    for name, layer in covered_layers(model).items():
        slices[name] = slice(start, start + matrix_size(layer))
        start += matrix_size(layer)
    return slices


def pack(model: nn.Module, named: dict[str, Tensor]) -> Tensor:
    """Named tensors shaped like the parameters as one vector (P,)."""
    rows = []
    for name, layer in covered_layers(model).items():
        matrix = named[f"{name}.weight"].flatten(1)
        if layer.bias is not None:
            matrix = torch.cat([matrix, named[f"{name}.bias"].unsqueeze(1)], dim=1)
        rows.append(matrix.flatten())
    return torch.cat(rows)


def packed_gradient(model: nn.Module, scalar: Tensor) -> Tensor:
    """The gradient of a scalar in the covered parameters, (P,)."""
    names = [n for n, _ in model.named_parameters() if n.rpartition(".")[0] in covered_layers(model)]
    gradients = torch.autograd.grad(
        scalar, [model.get_parameter(n) for n in names], retain_graph=True, materialize_grads=True
    )
    return pack(model, dict(zip(names, gradients, strict=True)))


def with_tokens(outputs: Tensor) -> Tensor:
    """(N, C) as (N, 1, C); (N, T, C) as it is."""
    return outputs.unsqueeze(1) if outputs.dim() == 2 else outputs


@dataclass(frozen=True)
class Term:
    """One loss term: sample and token, its output (C,), its Jacobian (C, P) and its target."""

    sample: int
    token: int
    output: Tensor
    jacobian: Tensor
    target: Tensor


def loss_terms(model: nn.Module, inputs: Tensor, targets: Tensor, loss: str) -> list[Term]:
    """Every valid loss term with its dense Jacobian, one backward pass per number."""
    terms = []
    for n in range(len(inputs)):
        outputs = with_tokens(model(inputs[n : n + 1]))[0]
        wanted = targets[n] if targets.dim() == (3 if loss == "gaussian" else 2) else targets[n].unsqueeze(0)
        for t, output in enumerate(outputs):
            if loss == "cross_entropy" and wanted[t] == IGNORED:
                continue
            jacobian = torch.stack([packed_gradient(model, number) for number in output])
            terms.append(Term(n, t, output.detach(), jacobian, wanted[t]))
    return terms


def batch_terms(model: nn.Module, inputs: Any, targets: Tensor, loss: str = "cross_entropy") -> list[Term]:
    """Every valid loss term with its Jacobian (C, Q) in all trained parameters, from one pass over the whole batch.

    A backward pass per number of the outputs starts from this number alone, so that a term of coupled samples has the
    derivatives of its own outputs. Parameters lie side by side as in ``named_parameters``.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    outputs = with_tokens(model(*inputs) if isinstance(inputs, tuple) else model(inputs))
    wanted = targets.reshape(outputs.shape if loss == "gaussian" else outputs.shape[:-1])
    terms = []
    for n, t in [(n, t) for n in range(len(outputs)) for t in range(outputs.shape[1])]:
        if loss == "cross_entropy" and wanted[n, t] == IGNORED:
            continue
        rows = [
            torch.autograd.grad(number, parameters, retain_graph=True, materialize_grads=True)
            for number in outputs[n, t]
        ]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        terms.append(Term(n, t, outputs[n, t].detach(), jacobian, wanted[n, t]))
    return terms


def score(term: Term, label: Tensor | int, loss: str) -> Tensor:
    """Gradient (P,) of the term's loss at a label; written as differences, which nothing can cancel."""
    if loss == "gaussian":
        return (term.output - label) @ term.jacobian
    probabilities = term.output.softmax(0)
    return probabilities @ (term.jacobian - term.jacobian[int(label)])


def type2_rows(term: Term, loss: str) -> Tensor:
    """Rows whose outer products sum to J' Lambda J: sqrt(p_i p_j) (J_i - J_j) over the pairs of classes, or J."""
    if loss == "gaussian":
        return term.jacobian
    p, j = term.output.softmax(0), term.jacobian
    pairs = [(a, b) for a in range(len(p)) for b in range(a)]
    return torch.stack([(p[a] * p[b]).sqrt() * (j[a] - j[b]) for a, b in pairs])


def type2_fisher(terms: Sequence[Term], loss: str) -> Tensor:
    """Mean of J' Lambda J over the terms, (P, P)."""
    rows = torch.cat([type2_rows(term, loss) for term in terms])
    return rows.T @ rows / len(terms)


def sample_fishers(terms: Sequence[Term], loss: str, samples: int) -> Tensor:
    """J' Lambda J summed over the terms of each sample, (N, P, P)."""
    total = torch.zeros(samples, *terms[0].jacobian.shape[1:] * 2, dtype=torch.float64)
    for term in terms:
        rows = type2_rows(term, loss)
        total[term.sample] += rows.T @ rows
    return total


def empirical_fisher(terms: Sequence[Term], loss: str) -> Tensor:
    """Mean outer product of the scores of the data labels."""
    scores = torch.stack([score(term, term.target, loss) for term in terms])
    return scores.T @ scores / len(terms)


def sampled_fisher(terms: Sequence[Term], labels: Sequence[Sequence[Any]], loss: str) -> Tensor:
    """Mean outer product of the scores of given labels, ``labels[k][term]``."""
    scores = torch.stack([score(term, y, loss) for row in labels for term, y in zip(terms, row, strict=True)])
    return scores.T @ scores / len(scores)


def fisher(terms: Sequence[Term], loss: str, fisher_type: str) -> Tensor:
    """The deterministic kinds by name."""
    return {"type-2": type2_fisher, "empirical": empirical_fisher}[fisher_type](terms, loss)


def mean_gradient(terms: Sequence[Term], loss: str) -> Tensor:
    """Gradient of the mean loss with the data labels."""
    return torch.stack([score(term, term.target, loss) for term in terms]).mean(0)


def mean_loss(model: nn.Module, inputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    """The mean loss as torch writes it."""
    outputs = model(inputs)
    if loss == "cross_entropy":
        return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)
    return 0.5 * (outputs - targets).square().sum(-1).mean()


def natural_gradient(matrix: Tensor, gradient: Tensor, damping: float) -> Tensor:
    """(F + damping I)^-1 g."""
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype), gradient)


# --- projections: parts of a dense matrix ------------------------------------------------------------------


def keep(matrix: Tensor, sizes: Sequence[int]) -> Tensor:
    """The matrix with everything outside the diagonal blocks of the given sizes set to zero."""
    return torch.block_diag(*diagonal_blocks(matrix, sizes))


def diagonal_blocks(matrix: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The diagonal blocks of the given sizes."""
    blocks, start = [], 0
    for size in sizes:
        blocks.append(matrix[start : start + size, start : start + size])
        start += size
    assert start == len(matrix), "the sizes do not add up"
    return blocks


def layer_sizes(model: nn.Module) -> list[int]:
    """One block per layer."""
    return [matrix_size(layer) for layer in covered_layers(model).values()]


def unit_sizes(model: nn.Module) -> list[int]:
    """One block per output unit or channel: a row of ``[W | b]``."""
    return [matrix_size(layer) // len(layer.weight) for layer in covered_layers(model).values() for _ in layer.weight]


def relative(approximation: Tensor, truth: Tensor) -> float:
    """|approximation - truth| / |truth|, Frobenius."""
    return float(((approximation - truth).norm() / truth.norm()).item())


# --- layer inputs and output gradients ---------------------------------------------------------------------


@dataclass(frozen=True)
class Factors:
    """Raw material of one group of one layer.

    ``inputs[n]``: (S, D) inputs of sample n, the constant 1 last. ``gradients[i]``: (S, M) gradient of
    pseudo-sample i, already weighted so that the sum of their outer products is the Fisher times ``terms``.
    ``owner[i]``: the sample of pseudo-sample i.
    """

    inputs: list[Tensor]
    gradients: list[Tensor]
    owner: list[int]
    terms: int


def positions(layer: Any, x: Tensor, group: int) -> Tensor:
    """Inputs (S, D) of one group at every output position of one sample, cut out one position at a time."""
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
    else:
        rows = torch.stack(list(patches(layer, x, group)))
    return rows if layer.bias is None else torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)


def patches(layer: Any, x: Tensor, group: int) -> list[Tensor]:
    """The flattened receptive field of every output position, (C_in / groups * k_h * k_w,) each."""
    two = isinstance(layer, nn.Conv2d)
    kernel, stride, dilation = (
        tuple(v) if two else (1, v[0]) for v in (layer.kernel_size, layer.stride, layer.dilation)
    )
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if layer.padding == "same":
        before, after = [r // 2 for r in reach], [r - r // 2 for r in reach]
    elif layer.padding == "valid":
        before = after = [0, 0]
    else:
        before = after = list(layer.padding) if two else [0, layer.padding[0]]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    amounts = (before[1], after[1], before[0], after[0]) if two else (before[1], after[1])
    image = functional.pad(x.unsqueeze(0), amounts, mode=mode)[0]
    image = image if two else image.unsqueeze(1)
    width = layer.in_channels // layer.groups
    image = image[group * width : (group + 1) * width]
    return [
        image[:, i : i + reach[0] + 1 : dilation[0], j : j + reach[1] + 1 : dilation[1]].flatten()
        for i in range(0, image.shape[1] - reach[0], stride[0])
        for j in range(0, image.shape[2] - reach[1], stride[1])
    ]


def observe(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Outputs (T, C) of one sample, every layer's input, and a zero added to every layer's output.

    The gradient in that zero is the pre-activation gradient, whatever in-place operation follows.
    """
    inputs: dict[str, Tensor] = {}
    zeros: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def add_zero(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs[name] = args[0].detach().clone()[0]
            zeros[name] = torch.zeros_like(output, requires_grad=True)
            return output + zeros[name]

        return add_zero

    handles = [layer.register_forward_hook(hook(name)) for name, layer in covered_layers(model).items()]
    try:
        return with_tokens(model(x.unsqueeze(0)))[0], inputs, zeros
    finally:
        for handle in handles:
            handle.remove()


def columns(output: Tensor, target: Tensor, loss: str, fisher_type: str) -> list[Tensor]:
    """Output-space vectors (C,) whose outer products sum to Lambda, or the gradient at the data label."""
    output = output.detach()
    if loss == "gaussian":
        return list(torch.eye(len(output), dtype=output.dtype)) if fisher_type == "type-2" else [output - target]
    probabilities, classes = output.softmax(0), torch.eye(len(output), dtype=output.dtype)
    if fisher_type == "empirical":
        return [probabilities - classes[int(target)]]
    return [p.sqrt() * (probabilities - e) for p, e in zip(probabilities, classes, strict=True)]


def group_gradient(layer: Any, gradient: Tensor, group: int) -> Tensor:
    """Pre-activation gradient of one sample as (S, M) of one group."""
    if isinstance(layer, nn.Linear):
        return gradient.reshape(-1, gradient.shape[-1])
    width = layer.out_channels // layer.groups
    return gradient.flatten(1).T[:, group * width : (group + 1) * width]


def layer_factors(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: str, fisher_type: str = "type-2"
) -> dict[str, list[Factors]]:
    """Raw material of every layer, one entry per group."""
    layers = covered_layers(model)
    parts = {name: [Factors([], [], [], 0) for _ in range(getattr(m, "groups", 1))] for name, m in layers.items()}
    count = 0
    for n, x in enumerate(inputs):
        outputs, seen, zeros = observe(model, x)
        wanted = targets[n] if targets.dim() == (3 if loss == "gaussian" else 2) else targets[n].unsqueeze(0)
        for name, groups in parts.items():
            for g, part in enumerate(groups):
                part.inputs.append(positions(layers[name], seen[name], g))
        for t, output in enumerate(outputs):
            if loss == "cross_entropy" and wanted[t] == IGNORED:
                continue
            count += 1
            for column in columns(output, wanted[t], loss, fisher_type):
                gradients = torch.autograd.grad(
                    output @ column, list(zeros.values()), retain_graph=True, materialize_grads=True
                )
                for name, gradient in zip(zeros, gradients, strict=True):
                    for g, part in enumerate(parts[name]):
                        part.gradients.append(group_gradient(layers[name], gradient[0], g))
                        part.owner.append(n)
    return {name: [Factors(p.inputs, p.gradients, p.owner, count) for p in groups] for name, groups in parts.items()}


def layer_scores(groups: Sequence[Factors]) -> Tensor:
    """Weighted scores of a layer, one row per pseudo-sample, from sums over positions: (b, P_l)."""
    rows = []
    for i in range(len(groups[0].gradients)):
        rows.append(torch.cat([(p.gradients[i].T @ p.inputs[p.owner[i]]).flatten() for p in groups]))
    return torch.stack(rows)


# --- Kronecker-type approximations -------------------------------------------------------------------------


def kfac_factors(part: Factors, approx: Literal["expand", "reduce"] = "expand") -> tuple[Tensor, Tensor]:
    """(B, A) of one group: output factor (M, M), input factor (D, D); F^ = B (x) A."""
    width, height = part.inputs[0].shape[1], part.gradients[0].shape[1]
    a = torch.zeros(width, width, dtype=torch.float64)
    b = torch.zeros(height, height, dtype=torch.float64)
    for x in part.inputs:
        for row in x if approx == "expand" else [x.mean(0)]:
            a += torch.outer(row, row) / len(part.inputs)
    for gradient in part.gradients:
        for row in gradient if approx == "expand" else [gradient.sum(0)]:
            b += torch.outer(row, row) / part.terms
    return (b / len(part.inputs[0]) if approx == "expand" else b), a


def kfac_block(groups: Sequence[Factors], approx: Literal["expand", "reduce"] = "expand") -> Tensor:
    """Dense K-FAC block of one layer; groups are independent layers."""
    return torch.block_diag(*[torch.kron(*kfac_factors(part, approx)) for part in groups])


def kfac(factors: dict[str, list[Factors]], approx: Literal["expand", "reduce"] = "expand") -> Tensor:
    """Dense K-FAC of the network."""
    return torch.block_diag(*[kfac_block(groups, approx) for groups in factors.values()])


def ekfac_block(block: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """Projection of a dense block on the matrices that are diagonal in the eigenbasis of B (x) A."""
    basis = torch.kron(torch.linalg.eigh(b).eigenvectors, torch.linalg.eigh(a).eigenvectors)
    return basis @ torch.diag((basis.T @ block @ basis).diagonal()) @ basis.T


def partial_traces(block: Tensor, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """(trace over inputs (M, M), trace over outputs (D, D)) of a block of size M * D."""
    four = block.reshape(outputs, inputs, outputs, inputs)
    return torch.einsum("idjd->ij", four), torch.einsum("mimj->ij", four)


def tkfac_block(block: Tensor, outputs: int, inputs: int) -> Tensor:
    """The Kronecker product with the block's partial traces."""
    left, right = partial_traces(block, outputs, inputs)
    return torch.kron(left, right) / block.trace()


def kpsvd_block(block: Tensor, outputs: int, inputs: int) -> Tensor:
    """The Kronecker product nearest in Frobenius norm, by the SVD of the rearranged block (Van Loan, Pitsianis)."""
    rearranged = block.reshape(outputs, inputs, outputs, inputs).permute(0, 2, 1, 3)
    u, s, v = torch.linalg.svd(rearranged.reshape(outputs**2, inputs**2), full_matrices=False)
    return s[0] * torch.kron(u[:, 0].reshape(outputs, outputs), v[0].reshape(inputs, inputs))


def damped_kronecker_solve(b: Tensor, a: Tensor, vector: Tensor, damping: float, rule: str) -> Tensor:
    """The three damped inverses of B (x) A, formed densely and applied to a vector (M * D,)."""
    eye_b, eye_a = torch.eye(len(b), dtype=b.dtype), torch.eye(len(a), dtype=a.dtype)
    if rule == "exact":
        return torch.linalg.solve(torch.kron(b, a) + damping * torch.eye(len(vector), dtype=b.dtype), vector)
    pi = 1.0 if rule == "factored" else float(((a.trace() / len(a)) / (b.trace() / len(b))).sqrt())
    root = damping**0.5
    return torch.linalg.solve(torch.kron(b + root / pi * eye_b, a + root * pi * eye_a), vector)
