"""Files of tensors that are written completely or not at all."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from curvbench import store

_FULL = "PytorchStreamWriter failed writing|inline_container.*unexpected pos"  # of torch's writer of files


def write(content: Mapping[str, Any], path: Path) -> None:
    """Store tensors atomically: a crash leaves the old or the new file.

    Raises:
        Unwritable: the file cannot be written.
    """
    with store.replacing(path) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # torch has no exception of its own for a disk without space
            if re.search(_FULL, str(error)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise
