"""Tiny data sets in the layouts in which their authors publish them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

RNG = np.random.default_rng(0)
CIFAR_FILES = {
    "cifar10": [
        *(f"cifar-10-batches-bin/data_batch_{k}.bin" for k in range(1, 6)),
        "cifar-10-batches-bin/test_batch.bin",
    ],
    "cifar100": ["cifar-100-binary/train.bin", "cifar-100-binary/test.bin"],
}
# Mean and standard deviation of the pixels, per channel, as commonly published.
PUBLISHED = {
    "mnist": ([0.1307], [0.3081]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "cifar100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
}


def idx(magic: int, array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", magic, *array.shape) + array.tobytes()


def mnist_files(train: int = 5, test: int = 3) -> dict[str, bytes]:
    files = {}
    for part, count in (("train", train), ("t10k", test)):
        images = RNG.integers(0, 256, (count, 28, 28), np.uint8)
        files[f"mnist/{part}-images-idx3-ubyte"] = idx(0x803, images)
        files[f"mnist/{part}-labels-idx1-ubyte"] = idx(0x801, np.arange(count, dtype=np.uint8))
    return files


def cifar_files(name: str, count: int = 4) -> dict[str, bytes]:
    heads = [[k % 10] if name == "cifar10" else [7, 90 + k] for k in range(count)]
    pixels = RNG.integers(0, 256, (count, 3072), np.uint8)
    record = b"".join(bytes(head) + row.tobytes() for head, row in zip(heads, pixels, strict=True))
    return dict.fromkeys(CIFAR_FILES[name], record)


def published(name: str) -> dict[str, bytes]:
    return mnist_files() if name == "mnist" else cifar_files(name)


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def pixel(name: str, value: int, channel: int) -> float:
    mean, std = PUBLISHED[name]
    return (value / 255 - mean[channel]) / std[channel]
