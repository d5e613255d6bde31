"""Photos in folders: labels are the places of their classes, pixels those of the middle, damage is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from curvbench import data, training
from curvbench.data.photos import Photos, labelled
from curvbench.spec import Dataset, Skip

image = pytest.importorskip("PIL.Image")
MEAN, STD = (0.5, 0.25, 0.0), (1.0, 0.5, 0.25)


def folders(root: Path, colours: dict[str, list[tuple[int, int, int]]], size: tuple[int, int] = (16, 16)) -> Path:
    for name, photos in colours.items():
        (root / name).mkdir(parents=True)
        for k, colour in enumerate(photos):
            image.new("RGB", size, colour).save(root / name / f"{k}.PNG")
    return root


CLASSES = {"b": [(255, 0, 0), (0, 0, 255)], "a": [(0, 255, 0)], "c": [(0, 0, 0)]}


def test_labels_are_the_places_of_the_classes_in_the_alphabet(tmp_path: Path) -> None:
    photos, labels = labelled(folders(tmp_path, CLASSES), 3, 7, MEAN, STD)
    assert labels.tolist() == [0, 1, 1, 2]
    pixels = photos.read()
    assert pixels.shape == (4, 3, 7, 7)
    colours = [(0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 0, 0)]
    expected = [[(v - m) / s for v, m, s in zip(colour, MEAN, STD, strict=True)] for colour in colours]
    torch.testing.assert_close(pixels[:, :, 3, 3], torch.tensor(expected))
    torch.testing.assert_close(pixels.std((2, 3)), torch.zeros(4, 3))


def test_the_middle_is_cut_out_of_an_oblong_photo(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    photo = image.new("RGB", (48, 16), (255, 255, 255))
    photo.paste((0, 0, 0), (16, 0, 32, 16))
    photo.save(tmp_path / "a" / "x.png")
    photos, _ = labelled(tmp_path, 1, 14, (0.0,) * 3, (1.0,) * 3)
    assert photos.read().max() < 0.2, "only the black middle, but for what resizing blurs"


def test_an_index_reads_nothing_and_gives_others(tmp_path: Path) -> None:
    photos, _ = labelled(folders(tmp_path, CLASSES), 3, 7, MEAN, STD)
    whole = photos.read()
    chosen = photos[torch.tensor([3, 0])]
    assert isinstance(chosen, Photos) and len(chosen) == 2
    assert torch.equal(chosen.read(), whole[[3, 0]])
    assert torch.equal(photos[1:3].read(), whole[1:3])
    assert photos.to("cpu", torch.float64).read().dtype == torch.float64


def test_training_reads_photos_batch_by_batch(tmp_path: Path) -> None:
    train = labelled(folders(tmp_path / "train", CLASSES), 3, 7, MEAN, STD)
    test = labelled(folders(tmp_path / "val", CLASSES), 3, 7, MEAN, STD)
    rest, held = training.held_out(Dataset(*train, *test), 0.25, 0)
    assert held is not None and len(rest.train_inputs) == 3
    tensors = Dataset(train[0].read(), train[1], test[0].read(), test[1])
    losses = []
    for dataset in (Dataset(*train, *test), tensors):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 49, 3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        course = training.Course(dataset.train_inputs, dataset.train_targets, "cross_entropy", 2, 3, "crop-flip")
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        losses += [[epoch.loss for epoch in training.train(model, course, optimizer, schedule)]]
        losses[-1] += [training.evaluate(model, dataset.test_inputs, dataset.test_targets, "cross_entropy")[0]]
    assert losses[0] == losses[1]


def test_a_damaged_photo_is_named(tmp_path: Path) -> None:
    photos, _ = labelled(folders(tmp_path, CLASSES), 3, 7, MEAN, STD)
    file = tmp_path / "a" / "0.PNG"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"0\.PNG is damaged: .*; remove it and get it again") as caught:
        photos.read()
    assert "\n" not in str(caught.value)


def test_classes_that_lack_are_named(tmp_path: Path) -> None:
    folders(tmp_path, CLASSES)
    with pytest.raises(ValueError, match=r"expected 4 folders in .*, one per class, found 3"):
        labelled(tmp_path, 4, 7, MEAN, STD)
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match=r"expected photos \(\.jpeg, \.jpg, \.png\) in .*d, found none"):
        labelled(tmp_path, 4, 7, MEAN, STD)


def test_imagenet_is_looked_for_in_its_published_layout(tmp_path: Path) -> None:
    with pytest.raises(Skip, match=r"imagenet is absent .*imagenet/train\): get ILSVRC2012 .*train/CLASS/\*\.JPEG"):
        data.load("imagenet", tmp_path)
    for part in ("train", "val"):
        folders(tmp_path / "imagenet" / part, CLASSES)
    with pytest.raises(ValueError, match=r"expected 1000 folders in .*train, one per class, found 3"):
        data.load("imagenet", tmp_path)


def test_imagenet_is_a_data_set(tmp_path: Path) -> None:
    for part in ("train", "val"):
        folders(tmp_path / "imagenet" / part, {f"n{k:08}": [(k % 256, 0, 0)] for k in range(1000)}, (4, 4))
    found = data.load("imagenet", tmp_path)
    assert len(found.train_inputs) == len(found.test_inputs) == 1000
    assert isinstance(found.train_inputs, Photos)
    assert found.train_inputs[torch.tensor([7])].read().shape == (1, 3, 224, 224)


def test_without_pillow_it_is_a_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(Skip, match=r"photos need Pillow: pip install 'curvbench\[photos\]'"):
        labelled(tmp_path, 1, 7, MEAN, STD)
