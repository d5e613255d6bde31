"""The steps of one probe at several dampings, from one fit and one factorization where algebra allows that.

If the step is (F^ + damping I)^-1 g, one eigenbasis of each Kronecker product and one Gram matrix of each exact Fisher
serve all dampings. Other probes are refreshed at every damping on the state that they have; a Cholesky factor per
damping costs less than the eigenbasis that would replace the eleven factors. A probe whose fit reads its damping is
fitted again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from curvbench import numerics
from curvbench.fisher import ExactFisher
from curvbench.instance import Instance
from curvbench.meters.direction import with_damping
from curvbench.operators import BlockDiagonal, Kronecker, Operator, RotatedDiagonal, Shifted
from curvbench.spec import Probe, Unsupported

Step = Tensor | str
"""A step (P,), or why there is none."""


def watched_fit(probe: Probe, instance: Instance) -> tuple[Any, bool]:
    """The state of ``probe.fit``, and whether the fit has read the probe's damping, so that the state may hold it."""
    reads: list[str] = []

    def __getattribute__(self: Probe, name: str) -> Any:
        if name == "damping":
            reads.append(name)
        return super(kind, self).__getattribute__(name)

    # A subclass for one fit, because no declaration can be right for the probes of users.
    content = {"__getattribute__": __getattribute__, "__module__": type(probe).__module__}
    kind: Any = type(type(probe).__name__, (type(probe),), content)
    watched = copy.copy(probe)
    object.__setattr__(watched, "__class__", kind)
    return watched.fit(instance), bool(reads)


def grid_steps(
    probe: Probe, state: Any, refits: bool, instance: Instance, gradient: Tensor, dampings: Sequence[float]
) -> list[Step]:
    """The preconditioned gradient (P,) at every damping, in units of the mean Fisher, or why there is none.

    ``state``: that of ``probe.fit``. ``refits``: whether the state depends on the probe's damping.
    """
    unit = probe.damping_unit(instance.terms)
    assert unit is not None, "the probe has a damping"
    blocks = None if refits else _shared_blocks(probe, state)
    if blocks is not None:
        return _checked(_solved(blocks, gradient, [damping * unit for damping in dampings]))
    return [_alone(probe, None if refits else (state,), instance, gradient, damping) for damping in dampings]


def _alone(probe: Probe, state: tuple[Any] | None, instance: Instance, gradient: Tensor, damping: float) -> Step:
    """The step at one damping; ``state`` None means that the probe is fitted again."""
    try:
        damped = with_damping(probe, damping, instance.terms)
        fitted = damped.fit(instance) if state is None else state[0]
        step = damped.precondition(damped.refresh(fitted), gradient.clone())
    except (ValueError, Unsupported, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return _checked([step])[0]


def _checked(steps: Sequence[Step]) -> list[Step]:
    """The steps, with a reason in place of those that are not finite."""
    flaws = ["" if isinstance(step, str) else numerics.flaw(step) for step in steps]
    return [f"the step is {flaw}" if flaw else step for step, flaw in zip(steps, flaws, strict=True)]


def _shared_blocks(probe: Probe, state: Any) -> list[Operator] | None:
    """The blocks of F^ in forms that solve at any damping; None if a refresh per damping is the probe's own way."""
    damped = probe.damped(state)
    if not isinstance(damped, Shifted):
        return None
    blocks = list(damped.inner.blocks) if isinstance(damped.inner, BlockDiagonal) else [damped.inner]
    if not any(isinstance(block, Kronecker | RotatedDiagonal | ExactFisher) for block in blocks):
        return None
    return [block.rotated if isinstance(block, Kronecker) else block for block in blocks]


def _solved(blocks: Sequence[Operator], gradient: Tensor, dampings: Sequence[float]) -> list[Step]:
    """(F^ + damping I)^-1 g at every damping in rising order, for the blocks of F^, or why there is none."""
    refused = _refused([block for block in blocks if isinstance(block, ExactFisher)], dampings)
    left = dampings[len(refused) :]
    parts = gradient.split([block.size for block in blocks])
    try:
        solved = [list(_block_steps(*pair, left)) for pair in zip(blocks, parts, strict=True)]
    except ValueError as error:
        return [*refused, *[str(error)] * len(left)]
    return [*refused, *(torch.cat(of_damping) for of_damping in zip(*solved, strict=True))]


def _refused(blocks: Sequence[ExactFisher], dampings: Sequence[float]) -> list[Step]:
    """Why the smallest dampings have no step: they do not mend Gram matrices that rounding has made indefinite."""
    reasons: list[Step] = []
    for block in blocks:
        while len(reasons) < len(dampings):
            try:
                block.factorize(dampings[len(reasons)])
                break
            except ValueError as error:
                reasons.append(str(error))
    return reasons


def _block_steps(block: Operator, part: Tensor, dampings: Sequence[float]) -> Iterator[Tensor]:
    if isinstance(block, ExactFisher):
        yield from block.natural_gradients(part, dampings).unbind(1)
    elif isinstance(block, RotatedDiagonal):
        yield from block.solve_at(part, dampings).unbind(1)
    else:
        yield from (block.solve(part, damping) for damping in dampings)
