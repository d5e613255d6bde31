"""Files of tensors that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write(content: Mapping[str, Any], path: Path) -> None:
    """Store tensors by way of a temporary name: after a crash there is the old file or the new one."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        torch.save(dict(content), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
