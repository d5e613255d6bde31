"""Write the layer shapes of a published network, traced without data and on the meta device, so without weights.

    python scripts/make_shapes.py resnet18-cifar100 > data/shapes/resnet18-cifar100.toml

T5 reads numbers of its inputs, and is traced on the CPU. Frozen layers have no entry; their products count in
``forward`` and ``backward``, so that the bytes of their weights and activations are in no total. Attentions count their
products.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curvbench import data
from curvbench.prediction.files import dumped
from curvbench.prediction.layout import Shape, Shapes
from curvbench.registry import parse_problem

BIG = "transformer[task=wmt14,width=1024,hidden=4096,heads=16,depth=6,vocabulary=37000,length=128]"
SMALL = "transformer[task=multi30k,width=512,hidden=2048,heads=8,depth=6,vocabulary=10000,length=32]"
T5 = "t5[size=small,task=xsum,source=512,target=128,mode={}]"


class Network(NamedTuple):
    """A problem, its source and its attentions: how many, the width of their values, positions and keys."""

    problem: str
    source: str
    attentions: tuple[tuple[int, int, int, int], ...] = ()


NETWORKS = {
    "resnet18-cifar100": Network("resnet[depth=18,dataset=cifar100]", "He et al. 2016, Table 1, with a 3 x 3 stem"),
    "resnet50-cifar100": Network("resnet[depth=50,dataset=cifar100]", "He et al. 2016, Table 1, with a 3 x 3 stem"),
    "resnet18-cifar10": Network("resnet[depth=18,dataset=cifar10]", "He et al. 2016, Table 1, with a 3 x 3 stem"),
    "resnet32-cifar10": Network("resnet[depth=32,dataset=cifar10]", "He et al. 2016, Sec. 4.2"),
    "transformer-multi30k": Network(
        SMALL, "Vaswani et al. 2017, with 512 and 2,048 units", ((12, 512, 32, 32), (6, 512, 32, 32))
    ),
    "t5-small": Network(
        T5.format("full"), "Raffel et al. 2020, small", ((6, 512, 512, 512), (6, 512, 128, 128), (6, 512, 128, 512))
    ),
    "t5-small-lora": Network(
        T5.format("lora"),
        "Raffel et al. 2020, small, with the adapters of rank 8 of Hu et al. 2022",
        ((6, 512, 512, 512), (6, 512, 128, 128), (6, 512, 128, 512)),
    ),
    "transformer-big": Network(
        BIG, "Vaswani et al. 2017, big, with 37,000 words", ((12, 1024, 128, 128), (6, 1024, 128, 128))
    ),
}


def shapes(name: str) -> Shapes:
    """The shapes of a network of the table, for a batch of one."""
    network = NETWORKS[name]
    problem = parse_problem(network.problem)
    with torch.device("cpu" if problem.name == "t5" else "meta"):
        model = problem.model().eval()
        inputs, terms = _inputs(problem)
    traced = list(_traced(model, inputs))
    own = [shape for shape, is_trained in traced if is_trained]
    attentions = [
        Shape(f"attention{k}", "attention", width, positions=positions, keys=keys, repeat=count)
        for k, (count, width, positions, keys) in enumerate(network.attentions, 1)
    ]
    frozen = sum(shape.product for shape, is_trained in traced if not is_trained)
    sums = [sum(shape.sums[k] * shape.repeat for shape in (*own, *attentions)) for k in range(3)]
    trained = {p for p in model.parameters() if p.requires_grad}
    count = sum(p.numel() for p in trained)
    source = f"{network.source}: {count:,} parameters"
    found = Shapes(
        (*own, *attentions),
        terms=terms,
        outputs=getattr(problem, "classes", 0),
        forward=frozen + sums[0] if frozen else None,
        backward=frozen + sums[1] + sums[2] if frozen else None,
        source=source,
        name=name,
    )
    assert found.parameters == count, f"{name}: {found.parameters:,} of {count:,} parameters are in its layers"
    return found


def _inputs(problem: Any) -> tuple[Tensor, int]:
    """Inputs of one sample, and its loss terms."""
    if hasattr(problem, "dataset"):
        return torch.zeros(1, *data.info(problem.dataset).shape), 1
    lengths = (problem.source, problem.target) if hasattr(problem, "source") else (problem.length, problem.length)
    return torch.ones(1, sum(lengths), dtype=torch.int64), lengths[1]


def _traced(model: nn.Module, inputs: Tensor) -> Iterator[tuple[Shape, bool]]:
    """The layers in the order of their calls, and whether they are trained; a parameter's second reader is tied."""
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if not list(module.children()) and list(module.parameters(recurse=False)):
            module.register_forward_hook(lambda m, args, out, name=name: calls.append((name, m, args[0], out)))
    with torch.no_grad():
        model(inputs)
    owners: dict[int, str] = {}
    names: set[str] = set()
    for name, module, x, out in calls:
        if name in names:
            continue
        names.add(name)
        weight = next(module.parameters(recurse=False))
        first = owners.setdefault(id(weight), name)
        yield _shape(name, module, x, out, "" if first == name else first), weight.requires_grad


def _shape(name: str, module: nn.Module, x: Tensor, out: Tensor, tied_to: str) -> Shape:
    if isinstance(module, nn.Conv2d):
        assert module.padding_mode == "zeros" and module.groups == 1
        kernel: tuple[int, ...] = tuple(module.kernel_size)
        return Shape(
            name,
            "conv",
            module.in_channels,
            module.out_channels,
            kernel=kernel,
            stride=module.stride[0],
            positions=out.shape[2:].numel(),
            bias=module.bias is not None,
        )
    if isinstance(module, nn.Linear):
        rows = out.numel() // out.shape[-1]
        bias = module.bias is not None
        return Shape(
            name, "linear", module.in_features, module.out_features, positions=rows, bias=bias, tied_to=tied_to
        )
    if isinstance(module, nn.Embedding):
        rows = x.numel()
        return Shape(name, "embedding", module.num_embeddings, module.embedding_dim, positions=rows, tied_to=tied_to)
    (numbers,) = module.weight.shape  # type: ignore[misc]
    bias = getattr(module, "bias", None) is not None
    return Shape(name, "norm", 1, numbers, positions=out.numel() // numbers, bias=bias)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    print(dumped(shapes(parser.parse_args().network)), end="")
