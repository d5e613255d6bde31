"""Downloads of published data sets from their authors' sites, verified by checksums.

The standard library is enough. pooch 1.9 takes six more packages, would need a class for the progress here, extracts
links out of archives with Python 3.11, and does not try a second address.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from shutil import copyfileobj

from curvbench.data.images import Info, info, missing

Progress = Callable[[str, int, int], None]

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Source:
    """A published file: its URLs, which are tried in order, and its checksum."""

    urls: tuple[str, ...]
    md5: str

    @property
    def file(self) -> str:
        """The file's name."""
        return self.urls[0].rpartition("/")[2]


def _mnist(file: str, md5: str) -> Source:
    return Source(
        (f"https://yann.lecun.com/exdb/mnist/{file}", f"https://ossci-datasets.s3.amazonaws.com/mnist/{file}"), md5
    )


SOURCES: dict[str, tuple[Source, ...]] = {
    "mnist": (
        _mnist("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        _mnist("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        _mnist("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        _mnist("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "cifar10": (
        Source(("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",), "c32a1d4ab5d03f1284b67883e8d87530"),
    ),
    "cifar100": (
        Source(("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",), "03b5dce01913d631647c71ecec9e9cb8"),
    ),
}
SOURCES["mnist14"] = SOURCES["mnist"]


def download(name: str, root: Path, progress: Progress | None = None) -> Path:
    """Download a data set into ``root`` and return its folder; a data set that is complete is not downloaded again.

    ``progress(file, bytes so far, bytes in all or -1)`` is called while a file arrives. Files appear in the folder
    after the checksums of all files were verified.

    Raises:
        ValueError: there is nothing to download, no URL answers, or a file differs from the published one.
    """
    dataset = info(name)
    if not dataset.folder:
        raise ValueError(f"{name} comes with scikit-learn: there is nothing to download")
    if dataset.origin:
        raise ValueError(f"{name} cannot be downloaded: {dataset.origin} in {root / dataset.folder}")
    folder = root / dataset.folder
    if not missing(dataset, folder):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
        arrived = [_fetch(source, Path(temporary), progress) for source in SOURCES[name]]
        files = _unpack(arrived[0], dataset, Path(temporary)) if arrived[0].name.endswith(".tar.gz") else arrived
        folder.mkdir(exist_ok=True)
        for file in files:
            file.replace(folder / file.name)
    return folder


def _fetch(source: Source, folder: Path, progress: Progress | None) -> Path:
    """The file from the first URL that serves the published file."""
    failures = []
    for url in source.urls:
        try:
            return _transfer(url, source, folder / source.file, progress)
        except (OSError, HTTPException, ValueError) as error:
            failures.append(f"{url}: {error}")
    raise ValueError(f"{source.file} cannot be downloaded ({'; '.join(failures)}): check the connection, try later")


def _transfer(url: str, source: Source, path: Path, progress: Progress | None) -> Path:
    digest, done = hashlib.md5(usedforsecurity=False), 0
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, path.open("wb") as out:
        total = int(answer.headers.get("Content-Length") or -1)
        while chunk := answer.read(CHUNK):
            out.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(path.name, done, total)
    if digest.hexdigest() != source.md5:
        raise ValueError(f"expected md5 {source.md5}, found {digest.hexdigest()} in {done} bytes")
    return path


def _unpack(archive: Path, dataset: Info, folder: Path) -> list[Path]:
    """The expected files of a data set out of its archive; other files of the archive are ignored."""
    with tarfile.open(archive, "r:gz") as tar:
        return [_member(tar, f"{dataset.folder}/{file}", folder / file) for file in dataset.train + dataset.test]


def _member(tar: tarfile.TarFile, name: str, path: Path) -> Path:
    member = next((member for member in tar.getmembers() if member.name == name and member.isfile()), None)
    content = tar.extractfile(member) if member is not None else None
    if content is None:
        raise ValueError(f"{tar.name!r} holds no file {name}: it is not the published archive")
    with content, path.open("wb") as out:
        copyfileobj(content, out)
    return path
