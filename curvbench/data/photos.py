"""Photographs in folders, one per class, decoded on demand, because ImageNet as one tensor would take 770 GB."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from curvbench.spec.outcomes import Skip

SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
MARGIN = 8 / 7  # the shorter side is resized to 256 pixels before 224 are cut out


@dataclass(frozen=True, eq=False)
class Photos:
    """Files that replace a tensor (N, 3, size, size): an index gives a selection of photos, ``read`` gives the tensor.

    ``mean`` and ``std``: constants of each channel, for pixels in [0, 1]. ``device`` and ``dtype``: of the tensor.
    """

    files: np.ndarray
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: Tensor | slice) -> Photos:
        chosen = rows if isinstance(rows, slice) else rows.cpu().numpy()
        return dataclasses.replace(self, files=self.files[chosen])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Photos:
        """The same photos with another device and dtype of the tensor."""
        return dataclasses.replace(self, device=device, dtype=dtype)

    def read(self) -> Tensor:
        """The middle of each photo, its shorter side resized to 8/7 of ``size``, normalised: (N, 3, size, size).

        Raises:
            ValueError: a file is damaged.
        """
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            pixels = torch.from_numpy(np.stack(list(pool.map(self._decoded, self.files))))
        images = pixels.to(self.device).movedim(-1, 1).to(self.dtype)
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return images.div_(255).sub_(mean).div_(std)

    def _decoded(self, file: str) -> np.ndarray:
        from PIL import Image, ImageOps

        try:
            with Image.open(file) as image:
                enlarged = round(self.size * MARGIN)
                resized = ImageOps.cover(image.convert("RGB"), (enlarged, enlarged), Image.Resampling.BILINEAR)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{file} is damaged: {error}; remove it and get it again") from error
        left, top = (resized.width - self.size) // 2, (resized.height - self.size) // 2
        return np.asarray(resized.crop((left, top, left + self.size, top + self.size)))


def labelled(
    folder: Path, classes: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Photos, Tensor]:
    """The photos below ``folder``, one folder per class, and their labels, in alphabetical order of the classes.

    Raises:
        Skip: Pillow is not installed.
        ValueError: the number of folders is not ``classes``, or a folder has no photo.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise Skip("photos need Pillow: pip install 'curvbench[photos]'") from error
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(folders) != classes:
        raise ValueError(f"expected {classes} folders in {folder}, one per class, found {len(folders)}")
    by_class = [sorted(str(f) for f in path.iterdir() if f.suffix.lower() in SUFFIXES) for path in folders]
    if empty := [path for path, files in zip(folders, by_class, strict=True) if not files]:
        raise ValueError(f"expected photos ({', '.join(sorted(SUFFIXES))}) in {empty[0]}, found none")
    labels = torch.arange(classes).repeat_interleave(torch.tensor([len(files) for files in by_class]))
    return Photos(np.array([file for files in by_class for file in files]), size, mean, std), labels
