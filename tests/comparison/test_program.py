"""``FILE.py:NAME``: what a function or object in a file gives, and one line for what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from curvbench.cells.given import Given
from curvbench.comparison.program import problem_of

HEAD = """
import torch
from torch import nn
MODEL = nn.Linear(3, 2)
X, Y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
"""
FORMS = {
    "four": "def mine():\n    return MODEL, X, Y, nn.CrossEntropyLoss()",
    "targets": "mine = (MODEL, X, Y)",
    "loader": "mine = [MODEL, [(X, Y)], 'cross_entropy']",
    "two": "def mine():\n    return MODEL, [{'input': X, 'labels': Y}]",
    "dict": "mine = {'model': MODEL, 'inputs': X, 'targets': Y, 'loss': 'cross_entropy', 'outputs': lambda y: y}",
    "class": "class mine(dict):\n    def __init__(self):\n        super().__init__(model=MODEL, inputs=X, targets=Y)",
}


def written(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(HEAD + text)
    return f"{folder / 'mine.py'}:mine"


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, tmp_path: Path) -> None:
    problem = problem_of(written(tmp_path, FORMS[form]))
    assert isinstance(problem, Given) and problem.name == "mine"
    assert torch.equal(problem.batch(0, "cpu")[1], torch.tensor([0, 1, 1, 0]))
    assert problem.loss.__class__.__name__ == "CrossEntropyLoss" or problem.loss == "cross_entropy"


def test_a_problem_passes_through(tmp_path: Path) -> None:
    problem = problem_of(written(tmp_path, "import curvbench as cb\nmine = cb.problem('mlp', samples=5)"))
    assert problem.name == "mlp" and problem.samples == 5


def test_the_seed_and_the_dtype_are_those_asked_for(tmp_path: Path) -> None:
    name = written(tmp_path, "def mine():\n    return nn.Linear(3, 2), X, Y")
    hashes = [problem_of(name, seed).held.model.weight.detach() for seed in (0, 0, 1)]  # type: ignore[attr-defined]
    assert torch.equal(hashes[0], hashes[1]) and not torch.equal(hashes[0], hashes[2])
    problem = problem_of(name, dtype="float64")
    assert problem.model().weight.dtype == problem.batch(0, "cpu")[0].dtype == torch.float64  # type: ignore[union-attr]


def test_the_content_is_the_identity(tmp_path: Path) -> None:
    """Another weight, input, target, buffer or loss is another problem, and the same content is the same."""
    same = "mine = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), torch.ones(4, 3), Y, 'cross_entropy'\n"
    changes = [
        "",
        "",
        "mine[0][0].weight.data[0, 0] += 1e-3",
        "mine[1][0, 0] = 2",
        "Y[0] = 1",
        "mine[0][1].running_var += 1",
    ]
    changes += ["mine = (*mine[:3], nn.CrossEntropyLoss(label_smoothing=0.1))"]
    texts = [f"torch.manual_seed(0)\n{same}{change}" for change in changes]
    labels = [problem_of(written(tmp_path / str(i), text)).label for i, text in enumerate(texts)]
    assert labels[0] == labels[1] and len({*labels}) == len(changes) - 1


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    torch.save(torch.ones(4, 3), tmp_path / "inputs.pt")
    load = "torch.load('inputs.pt', weights_only=True)"
    texts = (f"def mine():\n    return MODEL, {load}, Y", f"mine = MODEL, {load}, Y")
    for place, text in enumerate(texts):
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / "inputs.pt").write_bytes((tmp_path / "inputs.pt").read_bytes())
        before = Path.cwd()
        assert torch.equal(problem_of(written(folder, text)).batch(0, "cpu")[0], torch.ones(4, 3))  # type: ignore[arg-type]
        assert Path.cwd() == before


BAD = {
    "no name": ("other = 1", "no 'mine' in"),
    "fails": ("def mine():\n    return open('nowhere')", "mine failed: .*nowhere"),
    "nothing": ("def mine():\n    pass", "gives NoneType, where"),
    "a number": ("mine = 3", "gives int, where"),
    "no model": ("mine = 'a', X, Y", "where .*model"),
    "dict without model": ("mine = {'inputs': X}", "gives 'inputs', where"),
    "dict with more": ("mine = {'model': MODEL, 'input': X, 'targets': Y}", "did you mean inputs"),
    "model of another kind": ("mine = {'model': len, 'inputs': X, 'targets': Y}", "give a torch.nn.Module"),
    "no targets": ("mine = MODEL, X", "targets are missing"),
}


@pytest.mark.parametrize("what", BAD)
def test_one_line_for_the_rest(what: str, tmp_path: Path) -> None:
    text, message = BAD[what]
    with pytest.raises(ValueError, match=message) as caught:
        problem_of(written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mine.py", "mine:mine", "nowhere.py:mine"])
def test_a_name_that_names_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        problem_of(str(tmp_path / name))
    assert "\n" not in str(caught.value)
