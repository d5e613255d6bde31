"""Files of tensors that are written completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write(content: Mapping[str, Any], path: Path) -> None:
    """Store tensors under a temporary name and rename the file, so that a crash leaves the old or the new file."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        torch.save(dict(content), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
