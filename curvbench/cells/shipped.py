"""Shipped snapshots, ``data/snapshots/*.safetensors``: with them every machine measures the same weights.

Training amplifies rounding: after five epochs two processors have two different networks of one seed. The snapshots of
the suites are therefore files in float32, named by a hash of all settings that decide their weights. A snapshot of
other settings, or without its file, is trained during the run, and the rows say so. ``scripts/make_snapshots.py`` makes
the files.

Weights at initialisation are drawn during the run, because there processors differ only in the last bit of some
numbers.
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
from curvbench.shipped import DATA
from curvbench.spec import AdamRecipe, Problem
from curvbench.training import evaluate, seeded
from curvbench.words import one_line

FOLDER = DATA / "snapshots"
VERSION = 1  # of a recipe's meaning: raise it if the loop, its optimizer or the order of batches changes
REMEMBERED = 8  # training samples whose outputs a file holds, so that a changed network is noticed
TOLERANCE = 1e-3  # of the largest output: far above float32's rounding, far below another activation or shortcut
LONGEST_REASON = 200  # characters of torch's list of missing and unexpected weights, of which the first say enough
_METADATA, _OUTPUTS, _WEIGHT = "snapshot", "outputs", "weights."


class _File(NamedTuple):
    weights: Mapping[str, Tensor]
    outputs: Tensor
    metadata: Mapping[str, Any]


def recipe(problem: Problem, seed: int) -> dict[str, Any]:
    """The settings that decide the weights of a snapshot, as plain values."""
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
    """The recipe as a sentence."""
    settings, how = recipe(problem, seed), problem.recipe
    optimizer = "AdamW" if isinstance(how, AdamRecipe) else "SGD"
    network = ", ".join(f"{name}={value}" for name, value in settings["hyperparameters"].items())
    return (
        f"{problem.name} ({network}), seed {seed}: {problem.epochs} epochs of {optimizer} on {problem.loss}, "
        f"learning rate {how.learning_rate:g} falling to 0 as a cosine, momentum {how.momentum:g}, weight decay "
        f"{how.weight_decay:g}, shuffled batches of at most {how.batch}, float32"
    )


def path(problem: Problem, seed: int) -> Path:
    """The file of the snapshot of a problem and a seed, whether the file exists or not."""
    key = identity.short_hash(recipe(problem, seed))
    return FOLDER / f"{problem.name}-epochs-{problem.epochs}-seed-{seed}-{key}.safetensors"


def shipped(problem: Problem, seed: int) -> str:
    """The hash of the shipped snapshot; empty if none is shipped, the problem is untrained or not the package's.

    Raises:
        ValueError: the file is damaged.
    """
    of_package = type(problem).__module__.startswith("curvbench.problems.")
    if not (problem.epochs and of_package and path(problem, seed).is_file()):
        return ""
    return str(told(problem, seed)["sha256"])


def told(problem: Problem, seed: int) -> Mapping[str, Any]:
    """The metadata of a shipped snapshot: recipe, hash, losses, accuracies and origin; raises as ``shipped`` does."""
    return _read(problem, seed).metadata


def load(problem: Problem, seed: int, expected: str, root: Path | None) -> nn.Module:
    """The shipped snapshot in evaluation mode, on the CPU in float32, with the same bits on every machine.

    ``expected``: the hash that ``shipped`` gave. ``root``: the folder of the problem's data.

    Raises:
        ValueError: the file is absent, damaged, has other weights, or belongs to another network than the problem's.
    """
    file = _read(problem, seed)
    if file.metadata["sha256"] != expected:
        raise _unusable(problem, seed, f"its weights are {file.metadata['sha256']}, not {expected} as was planned")
    with seeded(seed, torch.device("cpu")):
        model = problem.model().to(torch.float32).eval()
    try:
        model.load_state_dict(dict(file.weights))
    except RuntimeError as error:
        raise _unusable(problem, seed, f"the network has changed: {one_line(error, LONGEST_REASON)}") from error
    change = (_outputs(model, problem, root) - file.outputs).abs().max()
    if not change <= TOLERANCE * file.outputs.abs().max():
        raise _unusable(problem, seed, f"the network has changed: with these weights its outputs move by {change:.2g}")
    return model


def save(model: nn.Module, problem: Problem, seed: int, root: Path | None, origin: Mapping[str, str]) -> Path:
    """Store a snapshot with its recipe, hash, losses and accuracies, and ``origin``: commit and version of torch.

    The model is left in evaluation mode.
    """
    model.eval()
    weights = {_WEIGHT + name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    tensors = {**weights, _OUTPUTS: _outputs(model, problem, root)}
    data = problem.data(root)
    train = evaluate(model, data.train_inputs, data.train_targets, problem.loss)
    test = evaluate(model, data.test_inputs, data.test_targets, problem.loss)
    scores = {"train.loss": train[0], "train.accuracy": train[1], "test.loss": test[0], "test.accuracy": test[1]}
    metadata = {
        "recipe": recipe(problem, seed),
        "words": in_words(problem, seed),
        "sha256": digest(tensors),
        **origin,
        **{name: f"{value:.6g}" for name, value in scores.items() if value is not None},
    }
    file = path(problem, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(as_bytes(tensors, {_METADATA: json.dumps(metadata)}))  # one entry: several have no fixed order
    return file


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, hexadecimal, over names, dtypes, shapes and bytes of tensors on the CPU."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def _read(problem: Problem, seed: int) -> _File:
    """The file of a snapshot; raises ValueError unless its hash fits its tensors and its recipe is the current one."""
    try:
        with safe_open(path(problem, seed), framework="pt") as opened:
            metadata = json.loads((opened.metadata() or {}).get(_METADATA, "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _unusable(problem, seed, one_line(error)) from error
    if digest(tensors) != metadata.get("sha256"):
        raise _unusable(problem, seed, "it is damaged: its hash does not fit its tensors")
    if metadata.get("recipe") != recipe(problem, seed):
        raise _unusable(problem, seed, "its recipe does not fit its name")
    weights = {name.removeprefix(_WEIGHT): t for name, t in tensors.items() if name.startswith(_WEIGHT)}
    return _File(weights, tensors[_OUTPUTS], metadata)


@torch.no_grad()
def _outputs(model: nn.Module, problem: Problem, root: Path | None) -> Tensor:
    """The outputs of a model in evaluation mode for the first training samples."""
    inputs = problem.data(root).train_inputs[:REMEMBERED]
    outputs: Tensor = model(inputs if isinstance(inputs, Tensor) else inputs.read())
    return outputs


def _unusable(problem: Problem, seed: int, why: str) -> ValueError:
    remedy = "restore it (git checkout data/snapshots), or train anew with --retrain"
    return ValueError(f"snapshot {path(problem, seed).name} cannot be used: {why}; {remedy}")
