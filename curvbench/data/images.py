"""Images: scikit-learn's digits, and MNIST, CIFAR-10, CIFAR-100 and ImageNet in their published layouts.

Files under the data folder are those of the authors::

    mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]
    cifar-10-batches-bin/{data_batch_1 ... data_batch_5,test_batch}.bin
    cifar-100-binary/{train,test}.bin
    imagenet/{train,val}/CLASS/*.JPEG                              1,000 classes, in alphabetical order

Sources: digits, E. Alpaydin and C. Kaynak (1998), UCI; MNIST, Y. LeCun and C. Cortes (1998); CIFAR, A. Krizhevsky,
"Learning Multiple Layers of Features from Tiny Images" (2009); ImageNet, O. Russakovsky et al. (2015).
"""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import importlib.util
import math
import os
import shlex
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curvbench.data.photos import labelled
from curvbench.spec.outcomes import Skip
from curvbench.spec.problem import Dataset

Bytes = NDArray[np.uint8]

DIGITS_TRAIN = 1437


@dataclass(frozen=True)
class Info:
    """A data set without its contents: images of shape (channels, size, size), classes, folder and files.

    ``mean`` and ``std`` are the usual constants of the data set per channel, for pixels in [0, 1]. ``origin`` says how
    to get a data set that ``curvbench data`` cannot download.
    """

    channels: int
    size: int
    classes: int
    folder: str = ""
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    origin: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image."""
        return self.channels, self.size, self.size


MNIST = Info(
    1,
    28,
    10,
    folder="mnist",
    train=("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    test=("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    mean=(0.1307,),
    std=(0.3081,),
)
INFO: dict[str, Info] = {
    "digits": Info(1, 8, 10),
    "mnist": MNIST,
    "mnist14": dataclasses.replace(MNIST, size=14),
    "cifar10": Info(
        3,
        32,
        10,
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
        test=("test_batch.bin",),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Info(
        3,
        32,
        100,
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    "imagenet": Info(
        3,
        224,
        1000,
        folder="imagenet",
        train=("train",),
        test=("val",),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        origin="get ILSVRC2012 from https://image-net.org as train/CLASS/*.JPEG and val/CLASS/*.JPEG",
    ),
}


def info(name: str) -> Info:
    """The ``Info`` of the data set ``name``; raises ValueError for an unknown name."""
    if name not in INFO:
        near = difflib.get_close_matches(name, INFO, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(INFO)}"
        raise ValueError(f"unknown data set {name!r}: {hint}")
    return INFO[name]


def load(name: str, root: Path | None = None) -> Dataset:
    """Inputs (N, channels, size, size) float32 and targets (N,) int64 of the training and the test part.

    digits has 1,437 and 360 images in a fixed order, with mean 0 and standard deviation 1 over the training part.
    The other data sets are read from ``root``, or from ``$CURVBENCH_DATA`` if ``root`` is None, and normalised per
    channel by the constants in ``INFO``. CIFAR files may hold any whole number of records, and CIFAR-100 has its fine
    labels. mnist14 is MNIST in means over 2 x 2 pixels. ImageNet's inputs are ``Photos``.

    Raises:
        Skip: the data set is missing; the text says how to get it.
        ValueError: the name is unknown, or a file is damaged.
    """
    dataset = info(name)
    if name == "digits":
        return _digits()
    folder = _folder(name, root)
    if name == "imagenet":
        photos = partial(labelled, classes=dataset.classes, size=dataset.size, mean=dataset.mean, std=dataset.std)
        return Dataset(*photos(folder / dataset.train[0]), *photos(folder / dataset.test[0]))
    read = _read_mnist if dataset.folder == MNIST.folder else _read_cifar
    train, test = (_part(dataset, *read(dataset, folder, files)) for files in (dataset.train, dataset.test))
    return Dataset(*train, *test)


def missing(dataset: Info, folder: Path) -> list[str]:
    """The files of a data set that a folder lacks."""
    return [file for file in dataset.train + dataset.test if find(folder, file) is None]


def _digits() -> Dataset:
    table = np.loadtxt(_sklearn() / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    order = np.random.RandomState(0).permutation(len(table))  # the only numpy generator whose stream never changes
    pixels, targets = table[order, :-1].reshape(-1, 1, 8, 8), torch.from_numpy(table[order, -1].astype(np.int64))
    train = pixels[:DIGITS_TRAIN]
    inputs = torch.from_numpy((pixels - train.mean()) / train.std()).float()
    return Dataset(inputs[:DIGITS_TRAIN], targets[:DIGITS_TRAIN], inputs[DIGITS_TRAIN:], targets[DIGITS_TRAIN:])


def _sklearn() -> Path:
    """The folder of scikit-learn, which is not imported, because the import takes a second in every cell."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.submodule_search_locations, "a dependency of this package"
    return Path(spec.submodule_search_locations[0])


def _folder(name: str, root: Path | None) -> Path:
    """The folder with all files of a data set, or Skip."""
    place = root or os.environ.get("CURVBENCH_DATA")
    option = shlex.quote(str(place)) if place else "DIR"
    download = f"`curvbench data {name} --data {option}` downloads it, or set CURVBENCH_DATA"
    advice = f"{origin} in {option}/{INFO[name].folder}" if (origin := INFO[name].origin) else download
    if not place:
        raise Skip(f"no folder for {name} is given: {advice}")
    folder = Path(place) / INFO[name].folder
    if lacking := missing(INFO[name], folder):
        raise Skip(f"{name} is absent ({folder / lacking[0]}): {advice}")
    return folder


def find(folder: Path, file: str) -> Path | None:
    """The path of the file, or of the gzipped file; None means that neither exists."""
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.exists()), None)


def _bytes(folder: Path, file: str) -> tuple[Path, Bytes]:
    path = find(folder, file)
    assert path is not None, "_folder checks that every file exists"
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise damaged(path, "a whole gzip file", str(error)) from error
    return path, np.frombuffer(content, np.uint8)


def damaged(path: Path, expected: str, contents: str) -> ValueError:
    """The error for a file that differs from the published file."""
    return ValueError(f"{path} is damaged: expected {expected}, found {contents}; remove it and get it again")


def _idx(folder: Path, file: str, dimensions: tuple[int, ...]) -> tuple[Path, Bytes]:
    """An idx file of bytes, whose header is 0, 0, 8 (bytes), the number of dimensions and the big-endian sizes."""
    path, content = _bytes(folder, file)
    rank = 1 + len(dimensions)
    magic, header, body = content[:4].tobytes(), content[4 : 4 + 4 * rank], content[4 + 4 * rank :]
    if magic != bytes((0, 0, 8, rank)):
        raise damaged(path, f"idx magic 0x{0x0800 + rank:08x}", f"0x{magic.hex()}")
    sizes = tuple(header[: 4 * (len(header) // 4)].view(">u4").tolist())
    if sizes[1:] != dimensions or len(body) != math.prod(sizes):
        wanted = math.prod(sizes) if sizes[1:] == dimensions else " x ".join(("N", *map(str, dimensions)))
        raise damaged(path, f"{wanted} bytes", f"{len(body)} bytes under a header that says {sizes}")
    return path, body.reshape(sizes)


def _read_mnist(dataset: Info, folder: Path, files: Sequence[str]) -> tuple[NDArray[Any], Bytes]:
    _, images = _idx(folder, files[0], (MNIST.size, MNIST.size))
    path, labels = _idx(folder, files[1], ())
    if len(labels) != len(images):
        raise damaged(path, f"{len(images)} labels", str(len(labels)))
    size, block = dataset.size, MNIST.size // dataset.size
    pixels = images.reshape(-1, 1, size, block, size, block).mean((3, 5)) if block > 1 else images[:, None]
    return pixels, _labels(path, labels, dataset)


def _read_cifar(dataset: Info, folder: Path, files: Sequence[str]) -> tuple[NDArray[Any], Bytes]:
    parts = [_records(dataset, folder, file) for file in files]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _records(dataset: Info, folder: Path, file: str) -> tuple[Bytes, Bytes]:
    """Records of one label byte (two in CIFAR-100: coarse and fine) and the pixels, channels first."""
    path, content = _bytes(folder, file)
    head = 2 if dataset.classes == 100 else 1
    length = head + dataset.channels * dataset.size**2
    if len(content) == 0 or len(content) % length:
        raise damaged(path, f"whole records of {length} bytes", f"{len(content)} bytes")
    records = content.reshape(-1, length)
    return records[:, head:].reshape(-1, *dataset.shape), _labels(path, records[:, head - 1], dataset)


def _labels(path: Path, labels: Bytes, dataset: Info) -> Bytes:
    if labels.size == 0 or labels.max() >= dataset.classes:
        raise damaged(path, f"labels 0 to {dataset.classes - 1}", str(labels.max()) if labels.size else "none")
    return labels


def _part(dataset: Info, images: NDArray[Any], labels: Bytes) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    pixels = torch.from_numpy(images.astype(np.float32))
    return pixels.div_(255).sub_(mean).div_(std), torch.from_numpy(labels.astype(np.int64))
