"""The exact Fisher of every kind of network that is shipped, narrow, over all parameters, against plain autograd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import oracles
import pytest
import torch
from torch import Tensor, nn

import curvbench as cb
from curvbench import training
from curvbench.problems.layers import Network
from curvbench.spec import Problem

BERT = "hidden_size=4 intermediate_size=6 num_hidden_layers=1 num_attention_heads=2 max_position_embeddings=8"
SWIN = "patch_size=2 embed_dim=4 depths=1/1 num_heads=1/2 window_size=2 mlp_ratio=1.0"
T5 = "d_model=4 d_kv=2 d_ff=6 num_layers=1 num_heads=2 relative_attention_num_buckets=4"
LLAMA = "hidden_size=4 intermediate_size=6 num_hidden_layers=1 num_attention_heads=2 num_key_value_heads=1"


def hf(architecture: str, config: str, vocabulary: int = 7) -> Problem:
    return cb.problem("hf", architecture=architecture, config=config, vocabulary=vocabulary, tokens=3, samples=2)


TINY = [
    cb.problem("mlp", hidden=4, depth=1, samples=3),
    cb.problem("resnet", depth=8, width=2, samples=3),
    cb.problem("resnet", depth=8, width=2, outputs=12, samples=2),
    cb.problem("resnet", depth=18, width=1, samples=2),
    cb.problem("resnet", depth=50, width=1, samples=2),
    cb.problem("vgg", width=1, samples=3),
    cb.problem("vgg", width=1, batchnorm=False, samples=3),
    cb.problem("transformer", width=4, hidden=6, length=3, samples=2),
    cb.problem("transformer", width=4, hidden=6, depth=2, length=2, samples=2),
    *(cb.problem("layers", network=network, samples=2) for network in get_args(Network)),
    cb.problem("vit", patch=4, width=4, depth=2, samples=2),
    cb.problem("gpt", vocabulary=7, tokens=3, width=4, depth=2, samples=2),
    cb.problem("gpt", vocabulary=7, tokens=3, width=4, tied=False, samples=2),
    cb.problem("lstm", vocabulary=7, tokens=3, width=3, samples=2),
    cb.problem("lstm", vocabulary=7, tokens=3, width=3, depth=2, samples=2),
    cb.problem("unet", width=2, depth=1, samples=2),
    hf("GPT2LMHeadModel", "n_embd=4 n_layer=1 n_head=2 n_positions=8"),
    hf("GPT2ForSequenceClassification", "n_embd=4 n_layer=1 n_head=2 n_positions=8"),
    hf("BertForMaskedLM", BERT),
    hf("SwinForImageClassification", SWIN),
    hf("T5ForConditionalGeneration", T5),
    hf("LlamaForCausalLM", LLAMA),
]
MOST = 6  # loss terms of a sample that count: each takes as many passes of the judge as there are classes


@pytest.fixture(params=TINY, ids=lambda problem: problem.label)
def problem(request: pytest.FixtureRequest) -> Problem:
    if request.param.name == "hf":
        pytest.importorskip("transformers")
    return request.param


def thinned(targets: Tensor) -> Tensor:
    """Targets of which each sample has at most ``MOST``; the others are no loss terms."""
    if targets.ndim == 1 or targets.shape[1] <= MOST:
        return targets
    counts = torch.arange(targets.shape[1]) % (targets.shape[1] // MOST + 1) == 0
    return targets.masked_fill(~counts, oracles.IGNORED)


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def rows_of_terms(model: nn.Module, inputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """Per loss term the rows (C, P) sqrt(p_c) times the gradient of log p_c, all other terms of the batch masked."""
    outputs, parameters = model(inputs), list(trained(model).values())
    for term in (targets != oracles.IGNORED).nonzero().tolist():
        p, rows = outputs[tuple(term)].detach().softmax(0), []
        for c in range(len(p)):
            cotangent = torch.zeros_like(outputs)
            cotangent[tuple(term)] = p[c].sqrt() * ((torch.arange(len(p)) == c).double() - p)
            gradients = torch.autograd.grad(outputs, parameters, cotangent, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([g.flatten() for g in gradients]))
        yield torch.stack(rows)


def order(instance: cb.Instance, model: nn.Module) -> Tensor:
    """Where each entry of the parameter vector stands among the model's parameters, flat and one after another."""
    sizes = {name: p.numel() for name, p in trained(model).items()}
    places = torch.arange(sum(sizes.values()), dtype=torch.float64)
    parts = zip(trained(model).items(), places.split(list(sizes.values())), strict=True)
    found = instance.pack({name: part.clone().view_as(p) for (name, p), part in parts})
    assert torch.equal(found.sort().values, places)
    return found.long()


def gradient(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    outputs = model(inputs)
    loss = nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=oracles.IGNORED)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(trained(model).values()))])


def test_exact_fisher_is_that_of_plain_autograd(problem: Problem) -> None:
    model = training.snapshot(problem, 0, None, dtype=torch.float64)
    inputs, targets = training.batch(problem, problem.data(None), 0, dtype=torch.float64)
    targets = thinned(targets)
    instance = cb.Instance(model, inputs, targets)
    assert instance.coverage == 1.0 and not instance.left_out and not instance.coupled
    fisher, places = cb.exact_fisher(instance), order(instance, model)
    terms = list(rows_of_terms(model, inputs, targets))
    rows = torch.cat(terms)[:, places]
    v = torch.randn(instance.size, dtype=torch.float64)
    assert instance.terms == len(terms)
    assert oracles.relative(fisher.matvec(v), rows.T @ (rows @ v) / len(terms)) <= 1e-10
    assert oracles.relative(fisher.diagonal(), rows.square().sum(0) / len(terms)) <= 1e-10
    assert fisher.frobenius_norm() == pytest.approx(float((rows @ rows.T).norm()) / len(terms), rel=1e-10)
    assert oracles.relative(instance.gradient(), gradient(model, inputs, targets)[places]) <= 1e-10
