"""Two processes on the parts of a batch against one on the whole; what ends one ends the other with a reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import oracles
import pytest
import ranks
import torch
from torch import nn

import curvbench as cb
from curvbench.instance import Instance
from curvbench.optim import NaturalGradient
from curvbench.states import tensors
from curvbench.states.ranks import Ranks, _owners, shared_map

SECONDS = 100  # for processes that take 5 on an idle machine


def launched(folder: Path, *dies: str) -> list[tuple[int, str]]:
    """Exit codes and what two ranks wrote to stderr."""
    script = Path(ranks.__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", folder, *dies],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=SECONDS)[1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [(process.returncode, error) for process, error in zip(running, errors, strict=True)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What either rank has stored."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = launched(folder)
    assert [code for code, _ in ended] == [0, 0], ended
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def together(stored: list[Any]) -> list[dict[str, torch.Tensor]]:
    return [parameters for parameters, _ in stored]


@pytest.mark.parametrize("name", ranks.SETTINGS)
def test_two_ranks_step_as_one_process_on_the_joined_batch(together: list[dict[str, torch.Tensor]], name: str) -> None:
    """Of five and seven samples, the second rank with parameters of its own before the start."""
    first, second = (found[name] for found in together)
    setting = ranks.SETTINGS[name]
    alone = ranks.trained(setting)
    assert torch.equal(first, second)
    assert oracles.relative(first, alone) <= 1e-10
    assert oracles.relative(ranks.trained(setting, slice(5)), alone) > 1e-3


def test_ranks_draw_labels_of_their_own(together: list[dict[str, torch.Tensor]]) -> None:
    """The judge averages the factors of both parts, each with its own seed, by hand."""
    model, (found, other) = ranks.model("mlp"), [ranked["mc"] for ranked in together]
    assert torch.equal(found, other)
    for t, (x, y) in enumerate(ranks.batches("mlp")):
        parts = [Instance(model, x[:5], y[:5]), Instance(model, x[5:], y[5:])]
        seeds = [2 * (5 * 2**20 + t) + rank for rank in range(2)]
        probes = [cb.probe("kfac", fisher_type="mc", damping=0.1, seed=seed) for seed in seeds]
        one, two = (p.update(None, part).factors for p, part in zip(probes, parts, strict=True))
        whole = Instance(model, x, y)
        gradients = whole.unpack(whole.gradient())
        for layer, a, b in zip(whole.layers, one, two, strict=True):
            left, right = ((5 * p + 7 * q)[0] / 12 for p, q in ((a.left, b.left), (a.right, b.right)))
            module = model.get_submodule(layer.name)
            grad = torch.cat([gradients[f"{layer.name}.weight"], gradients[f"{layer.name}.bias"][:, None]], 1)
            dense = torch.kron(left, right) + 0.1 * torch.eye(grad.numel()).double()
            step = torch.linalg.solve(dense, grad.flatten()).reshape(grad.shape)
            with torch.no_grad():
                module.weight.sub_(0.1 * step[:, :-1])
                module.bias.sub_(0.1 * step[:, -1])
    alone = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert oracles.relative(found, alone) <= 1e-10


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (
            "uneven",
            "give each part of a batch the same number of loss terms per sample, got (terms, samples) [(3, 4), (1, 1)]",
        ),
        ("singular", "the matrix is singular to working precision"),
        ("no mean", "ekfac trains in one process only"),
        ("no name", "the parts of ranks are joined as means over terms, which MSELoss need not be"),
    ],
)
def test_all_ranks_refuse_for_the_same_reason(stored: list[Any], case: str, text: str) -> None:
    messages = [said[case] for _, said in stored]
    assert messages[0] == messages[1]
    assert messages[0].startswith(text)


def test_a_rank_that_dies_ends_the_other_with_a_reason(tmp_path: Path) -> None:
    (code, error), (other, _) = launched(tmp_path, "dies")
    assert (code, other) == (1, 9)
    assert "ConnectionError: rank 0: another rank has ended or does not answer" in error


SCRIPT = """
import sys
sys.path[:0] = sys.argv[2:]
import torch
from torch import distributed
import ranks
torch.set_num_threads(1)
distributed.init_process_group("gloo")
rank = distributed.get_rank()
found = ranks.trained(ranks.SETTINGS["kfac"], slice(5) if rank == 0 else slice(5, 12), rank)
torch.save(found, f"{sys.argv[1]}/{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_script_under_torchrun(tmp_path: Path) -> None:
    script, tests = tmp_path / "train.py", Path(__file__).parent
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path), str(tests.parent), str(tests)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    alone = ranks.trained(ranks.SETTINGS["kfac"])
    for rank in range(2):
        assert oracles.relative(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone) <= 1e-10


def test_a_rank_alone_does_everything_itself() -> None:
    alone = Ranks.here()
    assert alone == Ranks(0, 1)
    with alone.sharing():
        assert shared_map(abs, [-1, 2]) == [1, 2]
    assert alone.share(3, 4) == 1.0


def test_the_dearest_layers_go_to_different_ranks() -> None:
    assert _owners([1.0, 8.0, 2.0, 9.0], 2) == [0, 1, 1, 0]


@pytest.mark.parametrize("name", ["kfac", "tkfac", "diag", "thor", "eva", "mbf"])
def test_means_of_parts_are_the_state_of_the_whole(name: str) -> None:
    """What ``joins = "mean"`` says of a probe."""
    ((x, y), *_) = ranks.batches("cnn")
    model, probe = ranks.model("cnn"), cb.probe(name)
    states = [probe.update(None, Instance(model, x[rows], y[rows])) for rows in (slice(5), slice(5, 12), slice(12))]
    for a, b, whole in zip(*map(tensors, states), strict=True):
        assert oracles.relative((5 * a + 7 * b) / 12, whole) <= 1e-12


def test_wrapped_models_are_refused() -> None:
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.layer = nn.Linear(2, 3)

    with pytest.raises(ValueError, match="give the module inside DistributedDataParallel"):
        NaturalGradient(Wrapped(), cb.probe("kfac"))
