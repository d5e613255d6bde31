"""Every preset of a published experiment trains: three steps of two samples, on a made-up folder in its data's layout.

What the machine of a test cannot hold is narrower here: T5 is the tiny one, and Transformers have a width of 64.
ImageNet's ResNet-50 is whole. Nothing is evaluated, because the made-up ImageNet has a test photo per class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published import cifar_files, mnist_files, write

from curvbench import training
from curvbench.cells.trial import optimizer_of
from curvbench.planning.selection import select
from curvbench.registry import load_suite
from curvbench.spec import Cell, Skip, Training
from curvbench.training import Course, placed, schedules

SUITES = Path(__file__).parents[1] / "suites" / "papers"
NARROW = {"t5": {"size": "tiny"}, "transformer": {"width": 64, "hidden": 128, "heads": 4}}
STEPS = 3


def trainings() -> Iterator[Cell]:
    """A cell of each network and method that a paper trains, with its first seed."""
    seen = set()
    for file in sorted(SUITES.glob("*.py")):
        for original in load_suite(file)[1].originals:
            for cell in select(file.stem, original, originals=[original]):
                if cell.training is not None and (key := (cell.problem, cell.probe)) not in seen:
                    seen.add(key)
                    yield cell


CELLS = list(trainings())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few samples in the layout of every data set of the papers."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("data")
    write(folder, mnist_files() | cifar_files("cifar10") | cifar_files("cifar100"))
    for part in ("train", "val"):
        for k in range(1000):
            (place := folder / "imagenet" / part / f"n{k:08}").mkdir(parents=True)
            image.new("RGB", (4, 4), (k % 256, k % 7, 0)).save(place / "0.JPEG")
    for corpus, parts in {"multi30k": ("train", "test_2016_flickr"), "wmt14": ("train", "newstest2014")}.items():
        (folder / corpus).mkdir()
        for part in parts:
            for language, line in (("en", "A dog runs to {}."), ("de", "Ein Hund läuft nach {}.")):
                lines = [line.format("ABCDEFGH"[k]) + "\n" for k in range(8)]
                (folder / corpus / f"{part}.{language}").write_text("".join(lines), encoding="utf-8")
    (folder / "xsum").mkdir()
    for part in ("train", "test"):
        records = [{"document": f"a long story of {k} dogs", "summary": f"{k} dogs"} for k in range(8)]
        (folder / "xsum" / f"{part}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    return folder


def narrow(cell: Cell) -> Cell:
    """The cell with a network that fits into the machine of a test, and with three steps of two samples."""
    problem = cell.problem
    if problem.name in NARROW:
        problem = replace(problem, **NARROW[problem.name])  # type: ignore[type-var]
    assert cell.training is not None
    short = replace(cell.training, batch=2, max_steps=STEPS)
    return replace(cell, problem=problem, training=short)


def trained(cell: Cell, root: Path) -> tuple[float, bool]:
    """The mean loss of the steps, and whether they have moved every weight that is trained."""
    settings = cell.training
    assert isinstance(settings, Training)
    dataset = cell.problem.data(root)
    model = cell.problem.model()
    inputs, targets = placed(dataset.train_inputs, dataset.train_targets, torch.device("cpu"), torch.float32)
    course = Course(inputs, targets, cell.problem.loss, 2, settings.epochs, settings.augment, max_steps=STEPS)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(cell, settings, model, course.loss, course.steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, schedules.factor(settings, course.steps))
    losses = [epoch.loss for epoch in training.train(model, course, optimizer, schedule, optimizer.forward)]
    after = [p for p in model.parameters() if p.requires_grad]
    return losses[0], all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def _is_quick(cell: Cell) -> bool:
    return cell.problem.name in ("cnn", "mlp")


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, id=cell.label, marks=() if _is_quick(cell) else pytest.mark.long) for cell in CELLS],
)
def test_a_preset_trains_three_steps(cell: Cell, root: Path) -> None:
    try:
        loss, has_moved = trained(narrow(cell), root)
    except Skip as reason:
        pytest.skip(str(reason))
    assert 0 < loss < math.inf and has_moved  # the published rate of CW-NGD's Adam leaves every basin
