"""Data sets: tiny files in the published layouts are read as written, damage and absence are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from published import CIFAR_FILES, cifar_files, idx, mnist_files, pixel, published, write

from curvbench import data
from curvbench.spec import Skip


def test_digits_is_standardised_on_its_training_part() -> None:
    digits = data.load("digits")
    assert digits.train_inputs.shape == (1437, 1, 8, 8)
    assert digits.test_inputs.shape == (360, 1, 8, 8)
    assert abs(digits.train_inputs.double().mean()) < 1e-6
    assert abs(digits.train_inputs.double().std(correction=0) - 1) < 1e-6
    assert digits.train_targets.dtype == torch.int64


def test_digits_split_is_fixed_and_loses_nothing() -> None:
    from sklearn.datasets import load_digits

    first, second = data.load("digits"), data.load("digits")
    assert torch.equal(first.train_inputs, second.train_inputs)
    labels = torch.cat([first.train_targets, first.test_targets])
    assert labels.bincount().tolist() == np.bincount(load_digits().target).tolist()
    assert (
        first.train_targets[:5].tolist()
        == load_digits().target[np.random.RandomState(0).permutation(1797)[:5]].tolist()
    )
    assert min(first.test_targets.bincount()) > 20


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_reads_idx_files(tmp_path: Path, zipped: bool) -> None:
    files = mnist_files()
    images = files["mnist/train-images-idx3-ubyte"]
    stored = {f"{name}.gz": gzip.compress(content) for name, content in files.items()} if zipped else files
    mnist = data.load("mnist", write(tmp_path, stored))
    assert mnist.train_inputs.shape == (5, 1, 28, 28)
    assert mnist.test_inputs.shape == (3, 1, 28, 28)
    assert mnist.train_targets.tolist() == [0, 1, 2, 3, 4]
    value = images[16 + 2 * 784 + 3 * 28 + 4]
    assert mnist.train_inputs[2, 0, 3, 4].item() == pytest.approx(pixel("mnist", value, 0), rel=1e-6)


def test_mnist14_is_mnist_in_means_of_four_pixels(tmp_path: Path) -> None:
    root = write(tmp_path, mnist_files())
    whole, small = data.load("mnist", root), data.load("mnist14", root)
    assert small.train_inputs.shape[1:] == data.info("mnist14").shape == (1, 14, 14)
    assert torch.equal(small.train_targets, whole.train_targets)
    expected = whole.train_inputs[3, 0, 4:6, 8:10].mean().item()
    assert small.train_inputs[3, 0, 2, 4].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "head", "parts"), [("cifar10", 1, 5), ("cifar100", 2, 1)])
def test_cifar_reads_records(tmp_path: Path, name: str, head: int, parts: int) -> None:
    files = cifar_files(name)
    cifar = data.load(name, write(tmp_path, files))
    assert cifar.train_inputs.shape == (4 * parts, 3, 32, 32)
    assert cifar.test_inputs.shape == (4, 3, 32, 32)
    assert cifar.test_targets.tolist() == ([0, 1, 2, 3] if name == "cifar10" else [90, 91, 92, 93])
    value = files[CIFAR_FILES[name][0]][(head + 3072) * 2 + head + 1024 * 2 + 32 * 5 + 6]
    assert cifar.train_inputs[2, 2, 5, 6].item() == pytest.approx(pixel(name, value, 2), rel=1e-6)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_images_fit_the_table(tmp_path: Path, name: str) -> None:
    loaded = data.load(name, write(tmp_path, published(name)))
    assert loaded.train_inputs.shape[1:] == data.info(name).shape
    assert loaded.train_inputs.dtype == torch.float32


def test_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVBENCH_DATA", str(write(tmp_path, mnist_files(train=2))))
    assert len(data.load("mnist").train_inputs) == 2


def test_argument_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVBENCH_DATA", str(write(tmp_path / "environment", mnist_files(train=2))))
    assert len(data.load("mnist", write(tmp_path / "argument", mnist_files(train=7))).train_inputs) == 7


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
@pytest.mark.parametrize("environment", [None, ""])
def test_no_root_is_a_skip(name: str, environment: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CURVBENCH_DATA", raising=False)
    if environment is not None:
        monkeypatch.setenv("CURVBENCH_DATA", environment)
    with pytest.raises(Skip, match=f"`curvbench data {name} --data DIR` downloads it, or set CURVBENCH_DATA"):
        data.load(name)


def test_absent_file_is_a_skip_that_quotes_the_folder(tmp_path: Path) -> None:
    root = write(tmp_path / "my data", mnist_files())
    (root / "mnist/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(Skip, match="t10k-labels-idx1-ubyte") as caught:
        data.load("mnist", root)
    assert f"`curvbench data mnist --data '{root}'`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_name_is_named_with_near_misses() -> None:
    with pytest.raises(ValueError, match="did you mean cifar10"):
        data.load("cifar-10")
    with pytest.raises(ValueError, match="digits, mnist, mnist14, cifar10, cifar100, imagenet"):
        data.load("svhn")


GOOD_LABELS = idx(0x801, np.arange(5, dtype=np.uint8))
IMAGES = "mnist/train-images-idx3-ubyte"
LABELS = "mnist/train-labels-idx1-ubyte"
DAMAGE = {
    "magic": (IMAGES, idx(0x801, np.zeros((5, 28, 28), np.uint8)), "expected idx magic 0x00000803, found 0x00000801"),
    "empty": (IMAGES, b"", "expected idx magic"),
    "short header": (IMAGES, idx(0x803, np.zeros((5, 28, 28), np.uint8))[:9], "N x 28 x 28 bytes, found 0 bytes"),
    "cut": (IMAGES, idx(0x803, np.zeros((5, 28, 28), np.uint8))[:-1], "expected 3920 bytes, found 3919 bytes under"),
    "other size": (IMAGES, idx(0x803, np.zeros((5, 27, 28), np.uint8)), r"says \(5, 27, 28\)"),
    "long": (LABELS, GOOD_LABELS + b"\0", "found 6 bytes under a header"),
    "too few labels": (LABELS, idx(0x801, np.arange(4, dtype=np.uint8)), "expected 5 labels, found 4"),
    "label out of range": (LABELS, idx(0x801, np.full(5, 10, np.uint8)), "labels 0 to 9, found 10"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_mnist_is_named(tmp_path: Path, damage: str) -> None:
    file, content, message = DAMAGE[damage]
    root = write(tmp_path, {**mnist_files(), file: content})
    with pytest.raises(ValueError, match=f"{file} is damaged: .*{message}") as caught:
        data.load("mnist", root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [gzip.compress(GOOD_LABELS, mtime=0)[:-9], b"<html>", gzip.compress(GOOD_LABELS, mtime=0)[:12] + b"abc"]
)
def test_damaged_gzip_is_named(tmp_path: Path, content: bytes) -> None:
    root = write(tmp_path, {**mnist_files(), f"{LABELS}.gz": content})
    (root / LABELS).unlink()
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte\.gz is damaged: expected a whole gzip file"):
        data.load("mnist", root)


@pytest.mark.parametrize("content", [b"", bytes(3072), bytes(2 * 3073 + 1)])
def test_cifar_file_of_a_wrong_size_is_named(tmp_path: Path, content: bytes) -> None:
    root = write(tmp_path, {**cifar_files("cifar10"), CIFAR_FILES["cifar10"][2]: content})
    message = f"data_batch_3.bin is damaged: expected whole records of 3073 bytes, found {len(content)} bytes"
    with pytest.raises(ValueError, match=message):
        data.load("cifar10", root)


def test_cifar_label_out_of_range_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, {**cifar_files("cifar100"), "cifar-100-binary/test.bin": bytes([3, 100]) + bytes(3072)})
    with pytest.raises(ValueError, match=r"test\.bin is damaged: expected labels 0 to 99, found 100"):
        data.load("cifar100", root)
