"""Downloads: checksums decide, nothing partial is left behind, only expected files leave an archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from published import CIFAR_FILES, cifar_files, mnist_files, write

from curvbench import data
from curvbench.data import download


def offer(folder: Path, files: dict[str, bytes]) -> tuple[download.Source, ...]:
    """Sources on this machine, with the right checksums."""
    write(folder, files)
    return tuple(
        download.Source(((folder / name).as_uri(),), hashlib.md5(content).hexdigest())
        for name, content in files.items()
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
    monkeypatch.setitem(download.SOURCES, "mnist", offer(tmp_path / "site", files))
    seen: list[tuple[str, int, int]] = []
    folder = download.download("mnist", tmp_path / "new" / "root", lambda *event: seen.append(event))
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
    monkeypatch.setitem(download.SOURCES, name, offer(tmp_path / "site", {"all.tar.gz": packed}))
    download.download(name, tmp_path / "root")
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
    monkeypatch.setitem(download.SOURCES, "cifar100", offer(tmp_path / "site", {"all.tar.gz": buffer.getvalue()}))
    with pytest.raises(ValueError, match=r"holds no file cifar-100-binary/train\.bin"):
        download.download("cifar100", tmp_path / "root")
    assert tree(tmp_path / "root") == []


def test_wrong_checksum_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = offer(tmp_path / "site", zipped_mnist())
    changed = download.Source(sources[-1].urls, "0" * 32)
    monkeypatch.setitem(download.SOURCES, "mnist", (*sources[:-1], changed))
    with pytest.raises(ValueError, match=f"expected md5 {'0' * 32}, found {sources[-1].md5}"):
        download.download("mnist", tmp_path / "root")
    assert tree(tmp_path / "root") == []


def test_interrupted_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(download.SOURCES, "mnist", offer(tmp_path / "site", zipped_mnist()))

    def interrupt(file: str, done: int, total: int) -> None:
        if file.startswith("t10k"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download.download("mnist", tmp_path / "root", interrupt)
    assert tree(tmp_path / "root") == []


def test_next_place_is_tried_when_one_fails_or_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = offer(tmp_path / "site", zipped_mnist())
    write(tmp_path / "liar", {source.file: b"<html>" for source in sources})
    places = {
        source: tuple((tmp_path / site / source.file).as_uri() for site in ("absent", "liar", "site"))
        for source in sources
    }
    monkeypatch.setitem(
        download.SOURCES, "mnist", tuple(download.Source(places[source], source.md5) for source in sources)
    )
    download.download("mnist", tmp_path / "root")
    assert len(data.load("mnist", tmp_path / "root").train_inputs) == 5


def test_unreachable_source_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(download.SOURCES, "cifar10", (download.Source(((tmp_path / "no.tar.gz").as_uri(),), "0" * 32),))
    with pytest.raises(ValueError, match=r"no\.tar\.gz cannot be downloaded .*check the connection") as caught:
        download.download("cifar10", tmp_path / "root")
    assert "\n" not in str(caught.value)


def test_what_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(download.SOURCES, "mnist", ())
    write(tmp_path, mnist_files())
    before = tree(tmp_path)
    assert download.download("mnist", tmp_path) == tmp_path / "mnist"
    assert tree(tmp_path) == before


def test_digits_need_no_download(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="comes with scikit-learn"):
        download.download("digits", tmp_path)


def test_sources_are_https_and_cover_every_set_that_is_not_embedded() -> None:
    assert set(download.SOURCES) == {"mnist", "mnist14", "cifar10", "cifar100"}
    sources = [source for files in download.SOURCES.values() for source in files]
    assert all(url.startswith("https://") for source in sources for url in source.urls)
    assert all(len(source.md5) == 32 for source in sources)


def test_what_cannot_be_downloaded_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"imagenet cannot be downloaded: get ILSVRC2012 from https://image-net\.org"):
        download.download("imagenet", tmp_path)
