"""Data sets: tiny files in the published layouts are read as written, damage and absence are named."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from curvbench import data
from curvbench.spec import Skip

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
    with pytest.raises(ValueError, match="digits, mnist, cifar10, cifar100"):
        data.load("imagenet")


GOOD_LABELS = idx(0x801, np.arange(5, dtype=np.uint8))
IMAGES = "mnist/train-images-idx3-ubyte"
LABELS = "mnist/train-labels-idx1-ubyte"
DAMAGE = {
    "magic": (IMAGES, idx(0x801, np.zeros((5, 28, 28), np.uint8)), "expected idx magic 0x00000803, found 0x00000801"),
    "empty": (IMAGES, b"", "expected idx magic"),
    "short header": (IMAGES, idx(0x803, np.zeros((5, 28, 28), np.uint8))[:9], "N x 28 x 28 bytes, found 0 bytes"),
    "cut": (IMAGES, idx(0x803, np.zeros((5, 28, 28), np.uint8))[:-1], "found 3919 bytes under"),
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
    "content", [gzip.compress(GOOD_LABELS)[:-9], b"<html>", gzip.compress(GOOD_LABELS)[:12] + b"abc"]
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


def offer(folder: Path, files: dict[str, bytes]) -> tuple[data.Source, ...]:
    """Sources on this machine, with the right checksums."""
    write(folder, files)
    return tuple(
        data.Source(((folder / name).as_uri(),), hashlib.md5(content).hexdigest()) for name, content in files.items()
    )


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped_mnist() -> dict[str, bytes]:
    return {f"{Path(name).name}.gz": gzip.compress(content) for name, content in mnist_files().items()}


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*")) if root.exists() else []


def test_mnist_downloads_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = zipped_mnist()
    monkeypatch.setitem(data.SOURCES, "mnist", offer(tmp_path / "site", files))
    seen: list[tuple[str, int, int]] = []
    folder = data.download("mnist", tmp_path / "new" / "root", lambda *event: seen.append(event))
    assert folder == tmp_path / "new" / "root" / "mnist"
    assert tree(tmp_path / "new" / "root") == ["mnist", *sorted(f"mnist/{name}" for name in files)]
    assert {name: done for name, done, _ in seen} == {name: len(content) for name, content in files.items()}
    assert all(done == total for _, done, total in seen)
    assert len(data.load("mnist", tmp_path / "new" / "root").train_inputs) == 5


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_takes_only_what_is_expected_out_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hostile = {"../outside": b"x", str(tmp_path / "absolute"): b"x", f"{data.info(name).folder}/readme.html": b"x"}
    packed = archive({**hostile, **cifar_files(name)})
    monkeypatch.setitem(data.SOURCES, name, offer(tmp_path / "site", {"all.tar.gz": packed}))
    data.download(name, tmp_path / "root")
    assert tree(tmp_path) == sorted(
        ["root", "site", "site/all.tar.gz", f"root/{data.info(name).folder}", *(f"root/{f}" for f in CIFAR_FILES[name])]
    )
    assert len(data.load(name, tmp_path / "root").test_inputs) == 4


def test_link_in_place_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo("cifar-100-binary/train.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    monkeypatch.setitem(data.SOURCES, "cifar100", offer(tmp_path / "site", {"all.tar.gz": buffer.getvalue()}))
    with pytest.raises(ValueError, match=r"holds no file cifar-100-binary/train\.bin"):
        data.download("cifar100", tmp_path / "root")
    assert tree(tmp_path / "root") == []


def test_wrong_checksum_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = offer(tmp_path / "site", zipped_mnist())
    changed = data.Source(sources[-1].urls, "0" * 32)
    monkeypatch.setitem(data.SOURCES, "mnist", (*sources[:-1], changed))
    with pytest.raises(ValueError, match=f"expected md5 {'0' * 32}, found {sources[-1].md5}"):
        data.download("mnist", tmp_path / "root")
    assert tree(tmp_path / "root") == []


def test_interrupted_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.SOURCES, "mnist", offer(tmp_path / "site", zipped_mnist()))

    def interrupt(file: str, done: int, total: int) -> None:
        if file.startswith("t10k"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.download("mnist", tmp_path / "root", interrupt)
    assert tree(tmp_path / "root") == []


def test_next_place_is_tried_when_one_fails_or_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = offer(tmp_path / "site", zipped_mnist())
    write(tmp_path / "liar", {source.file: b"<html>" for source in sources})
    places = {
        source: tuple((tmp_path / site / source.file).as_uri() for site in ("absent", "liar", "site"))
        for source in sources
    }
    monkeypatch.setitem(data.SOURCES, "mnist", tuple(data.Source(places[source], source.md5) for source in sources))
    data.download("mnist", tmp_path / "root")
    assert len(data.load("mnist", tmp_path / "root").train_inputs) == 5


def test_unreachable_source_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.SOURCES, "cifar10", (data.Source(((tmp_path / "no.tar.gz").as_uri(),), "0" * 32),))
    with pytest.raises(ValueError, match=r"no\.tar\.gz cannot be downloaded .*check the connection") as caught:
        data.download("cifar10", tmp_path / "root")
    assert "\n" not in str(caught.value)


def test_what_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.SOURCES, "mnist", ())
    write(tmp_path, mnist_files())
    before = tree(tmp_path)
    assert data.download("mnist", tmp_path) == tmp_path / "mnist"
    assert tree(tmp_path) == before


def test_digits_need_no_download(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="comes with scikit-learn"):
        data.download("digits", tmp_path)


def test_sources_are_https_and_cover_every_set_that_is_not_embedded() -> None:
    assert set(data.SOURCES) == {"mnist", "cifar10", "cifar100"}
    sources = [source for files in data.SOURCES.values() for source in files]
    assert all(url.startswith("https://") for source in sources for url in source.urls)
    assert all(len(source.md5) == 32 for source in sources)
