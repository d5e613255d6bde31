"""What an instance was made of, and the contents at that time."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from curvbench.instance.contents import Contents
from curvbench.instance.inputs import Inputs, batch_contents


class Original(NamedTuple):
    """The model and the batch that an instance was made of, and their contents at that time."""

    model: nn.Module
    inputs: Inputs
    targets: Tensor
    contents: Contents

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, targets: Tensor) -> Original:
        return cls(model, inputs, targets, Contents.of(_watched(model, inputs, targets)))

    def refuse_changed(self) -> None:
        changed = self.contents.changed(_watched(self.model, self.inputs, self.targets))
        if changed is not None:
            raise ValueError(
                f"the contents of {changed} changed after this Instance was made: a probe must not write to them; "
                "after training, make a new Instance"
            )


def _watched(model: nn.Module, inputs: Inputs, targets: Tensor) -> dict[str, Any]:
    return {
        **{f"parameter {name!r} of the model": p for name, p in model.named_parameters()},
        **{f"buffer {name!r} of the model": b for name, b in model.named_buffers()},
        **batch_contents(inputs, targets),
    }
