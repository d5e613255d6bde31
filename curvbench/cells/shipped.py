"""Snapshots that are shipped: ``data/snapshots/*.safetensors``, so that every machine measures the same weights.

Training amplifies rounding: after five epochs the processors of two machines have made two networks of one seed. The
snapshots of the suites are therefore files, float32, found by all that decides their weights; any other setting, and
all where the folder is not there, are trained on the spot, and the rows say so. ``scripts/make_snapshots.py`` makes
them anew.

Weights at initialisation are drawn on the spot: what processors differ by there is the last bit of some numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from curvbench import identity
from curvbench.spec import Problem
from curvbench.training import evaluate, seeded

FOLDER = Path(__file__).parents[2] / "data" / "snapshots"
VERSION = 1  # of what a recipe means: to be raised where the loop, its optimizer or the order of batches is another
REMEMBERED = 8  # training samples whose outputs a file holds, to know the network by
TOLERANCE = 1e-3  # of the largest output: far above float32's rounding, far below another activation or shortcut
_TOLD, _OUTPUTS, _WEIGHT = "snapshot", "outputs", "weights."


class _File(NamedTuple):
    weights: Mapping[str, Tensor]
    outputs: Tensor
    told: Mapping[str, Any]


def recipe(problem: Problem, seed: int) -> dict[str, Any]:
    """All that decides the weights of a snapshot, as plain values: what is only measured of them is left out."""
    decisive = {name: value for name, value in problem.hyperparameters.items() if name not in problem.measured}
    return {
        "version": VERSION,
        "problem": problem.name,
        "hyperparameters": {name: list(v) if isinstance(v, tuple) else v for name, v in decisive.items()},
        "loss": problem.loss,
        "training": dataclasses.asdict(problem.recipe),
        "seed": seed,
    }


def in_words(problem: Problem, seed: int) -> str:
    """The recipe as a person would tell it."""
    told, how = recipe(problem, seed), problem.recipe
    network = ", ".join(f"{name}={value}" for name, value in told["hyperparameters"].items())
    return (
        f"{problem.name} ({network}), seed {seed}: {problem.epochs} epochs of SGD on {problem.loss}, learning rate "
        f"{how.learning_rate:g} falling to 0 as a cosine, momentum {how.momentum:g}, weight decay "
        f"{how.weight_decay:g}, shuffled batches of at most {how.batch}, float32"
    )


def path(problem: Problem, seed: int) -> Path:
    """Where the snapshot of a problem and a seed lies, if there is one: another recipe is another file."""
    key = identity.short_hash(recipe(problem, seed))
    return FOLDER / f"{problem.name}-epochs-{problem.epochs}-seed-{seed}-{key}.safetensors"


def shipped(problem: Problem, seed: int) -> str:
    """The hash of the shipped snapshot; empty where there is none, as for what is not trained or not the package's.

    Raises:
        ValueError: the file is damaged.
    """
    of_package = type(problem).__module__.startswith("curvbench.problems.")
    if not (problem.epochs and of_package and path(problem, seed).is_file()):
        return ""
    return str(told(problem, seed)["sha256"])


def told(problem: Problem, seed: int) -> Mapping[str, Any]:
    """What a shipped snapshot says of itself: recipe, hash, losses and accuracies, origin; raises as ``shipped``."""
    return _read(problem, seed).told


def load(problem: Problem, seed: int, expected: str, root: Path | None) -> nn.Module:
    """The shipped snapshot in evaluation mode, on the CPU in float32: the same bits wherever it is read.

    ``expected``: the hash that ``shipped`` gave; ``root``: of the problem's data.

    Raises:
        ValueError: the file is absent, damaged, has other weights, or was made of another network than the problem has.
    """
    found = _read(problem, seed)
    if found.told["sha256"] != expected:
        raise _unusable(problem, seed, f"its weights are {found.told['sha256']}, not {expected} as was planned")
    with seeded(seed, torch.device("cpu")):
        model = problem.model().to(torch.float32).eval()
    try:
        model.load_state_dict(dict(found.weights))
    except RuntimeError as error:
        raise _unusable(problem, seed, f"the network has changed: {' '.join(str(error).split())[:200]}") from error
    moved = (_outputs(model, problem, root) - found.outputs).abs().max()
    if not moved <= TOLERANCE * found.outputs.abs().max():
        raise _unusable(problem, seed, f"the network has changed: with these weights its outputs move by {moved:.2g}")
    return model


def save(model: nn.Module, problem: Problem, seed: int, root: Path | None, origin: Mapping[str, str]) -> Path:
    """Store a snapshot with its recipe, its hash, what it has come to, and its ``origin``: commit, version of torch.

    The model is left in evaluation mode.
    """
    model.eval()
    weights = {_WEIGHT + name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    tensors = {**weights, _OUTPUTS: _outputs(model, problem, root)}
    data = problem.data(root)
    train = evaluate(model, data.train_inputs, data.train_targets, problem.loss)
    test = evaluate(model, data.test_inputs, data.test_targets, problem.loss)
    scores = {"train.loss": train[0], "train.accuracy": train[1], "test.loss": test[0], "test.accuracy": test[1]}
    says = {
        "recipe": recipe(problem, seed),
        "words": in_words(problem, seed),
        "sha256": digest(tensors),
        **origin,
        **{name: f"{value:.6g}" for name, value in scores.items() if value is not None},
    }
    file = path(problem, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(as_bytes(tensors, {_TOLD: json.dumps(says)}))  # one entry: of several the order is not kept
    return file


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash over names, kinds, shapes and bytes of tensors on the CPU: SHA-256, hexadecimal."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def _read(problem: Problem, seed: int) -> _File:
    """A file whose tensors are what its hash says, and whose recipe is today's; raises ValueError for any other."""
    try:
        with safe_open(path(problem, seed), framework="pt") as opened:
            told = json.loads((opened.metadata() or {}).get(_TOLD, "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _unusable(problem, seed, " ".join(str(error).split())) from error
    if digest(tensors) != told.get("sha256"):
        raise _unusable(problem, seed, "it is damaged: its tensors are not those that its hash is of")
    if told.get("recipe") != recipe(problem, seed):
        raise _unusable(problem, seed, "its recipe is not that of its name")
    weights = {name.removeprefix(_WEIGHT): t for name, t in tensors.items() if name.startswith(_WEIGHT)}
    return _File(weights, tensors[_OUTPUTS], told)


@torch.no_grad()
def _outputs(model: nn.Module, problem: Problem, root: Path | None) -> Tensor:
    """What a model in evaluation mode makes of the first training samples."""
    inputs = problem.data(root).train_inputs[:REMEMBERED]
    found: Tensor = model(inputs if isinstance(inputs, Tensor) else inputs.read())
    return found


def _unusable(problem: Problem, seed: int, why: str) -> ValueError:
    remedy = "restore it (git checkout data/snapshots), or train anew with --retrain"
    return ValueError(f"snapshot {path(problem, seed).name} cannot be used: {why}; {remedy}")
