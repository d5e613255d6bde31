"""One model trained by several processes: their gradients and statistics are joined, their factorizations shared.

Every rank has the same parameters and a part of each batch. Means over parts become that of the whole when they are
weighted by their loss terms. The collectives are those of torch.distributed's default process group, whose timeout
bounds the wait for a rank that hangs; without a group there is one rank, and nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from curvbench import states

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """The number of this process among ``count``.

    Raises of all methods:
        ConnectionError: another rank has ended, or did not answer within the group's timeout.
    """

    rank: int = 0
    count: int = 1

    @staticmethod
    def here() -> Ranks:
        """Those of the default process group."""
        grouped = dist.is_available() and dist.is_initialized()
        return Ranks(dist.get_rank(), dist.get_world_size()) if grouped else ALONE

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the first one's values."""
        if self.count > 1:
            self._together(tensors, partial(dist.broadcast, src=0, async_op=True))

    def first(self, find: Callable[[], Result]) -> Result:
        """What the first rank finds, for all of them."""
        if self.count == 1:
            return find()
        found: list[Any] = [find() if self.rank == 0 else None]
        with self._answered():
            dist.broadcast_object_list(found, src=0)
        return found[0]

    def all(self, mine: Item) -> list[Item]:
        """What every rank has, in their order."""
        return [mine] if self.count == 1 else self._told(mine)

    def total(self, mine: Tensor) -> Tensor:
        """The sum over ranks."""
        if self.count == 1:
            return mine
        whole = mine.clone()
        self._sum([whole])
        return whole

    def mean(self, mine: Tensor, weights: Tensor) -> Tensor:
        """The mean over ranks, each weighted."""
        if self.count == 1:
            return mine
        return self.total(torch.where(weights > 0, weights * mine, 0.0)) / self.total(weights)

    def share(self, *counts: int) -> float:
        """This rank's of ``shares``; raises ValueError as that does."""
        return 1.0 if self.count == 1 else shares(self._told(counts))[self.rank]

    def join_gradients(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        """Replace ``.grad`` by the sum over ranks, each weighted by its share; none on any rank stays none."""
        if self.count == 1:
            return
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        self._sum([has])
        reached = [p for p, found in zip(parameters, has.tolist(), strict=True) if found]
        for p in reached:
            p.grad = torch.zeros_like(p) if p.grad is None else (share * p.grad).contiguous()
        self._sum([p.grad for p in reached if p.grad is not None])

    def join_state(self, state: Any, share: float) -> Any:
        """The sum over ranks of a state's tensors of floats, each weighted by its share."""
        if self.count == 1:
            return state
        joined = states.mapped(state, lambda t: (share * t).contiguous() if t.is_floating_point() else t)
        self._sum([t for t in states.tensors(joined) if t.is_floating_point()])
        return joined

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Inside, ``shared_map`` divides its work among the ranks."""
        token = _sharing.set(self)
        try:
            yield
        finally:
            _sharing.reset(token)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """``function`` of every item, each computed by one rank and sent to the others.

        Raises:
            ValueError: on every rank, what it raised on one.
        """
        owners = _owners([sum(t.numel() ** 1.5 for t in states.tensors(item)) for item in items], self.count)
        mine: dict[int, Any] = {}
        reason = ""
        try:
            for i, item in enumerate(items):
                if owners[i] == self.rank:
                    mine[i] = states.mapped(function(item), Tensor.contiguous)
        except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            reason = str(error)
        told = self._told((reason, {i: states.mapped(result, _outline) for i, result in mine.items()}))
        if reasons := [reason for reason, _ in told if reason]:
            raise ValueError(reasons[0])
        device = next(t.device for item in items for t in states.tensors(item))
        outlines = {i: outline for _, found in told for i, outline in found.items()}
        results = [
            mine[i] if i in mine else states.mapped(outlines[i], lambda t: torch.empty_like(t, device=device))
            for i in range(len(items))
        ]
        for owner, result in zip(owners, results, strict=True):
            self._together(states.tensors(result), partial(dist.broadcast, src=owner, async_op=True))
        return results

    def _told(self, message: Any) -> list[Any]:
        """What every rank has to say."""
        messages: list[Any] = [None] * self.count
        with self._answered():
            dist.all_gather_object(messages, message)
        return messages

    def _sum(self, tensors: Iterable[Tensor]) -> None:
        self._together(tensors, partial(dist.all_reduce, async_op=True))

    def _together(self, tensors: Iterable[Tensor], begin: Callable[[Tensor], Any]) -> None:
        with self._answered(), torch.no_grad():
            for work in [begin(tensor) for tensor in tensors]:
                work.wait()

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            why = str(error).strip().splitlines()[0]
            raise ConnectionError(f"rank {self.rank}: another rank has ended or does not answer ({why})") from error


def shares(parts: Sequence[Sequence[int]]) -> list[float]:
    """The share of each part in a whole, of which it has so many terms, so many samples, ...; equal parts of nothing.

    Raises:
        ValueError: the shares differ from one count to the other.
    """
    columns = zip(*parts, strict=True)
    found = [[n / sum(column) if sum(column) else 1 / len(parts) for n in column] for column in columns]
    if any(max(row) - min(row) > 1e-12 for row in zip(*found, strict=True)):
        raise ValueError(
            f"give each part of a batch the same number of loss terms per sample, got (terms, samples) {[*parts]}"
        )
    return found[0]


ALONE = Ranks()
_sharing: ContextVar[Ranks] = ContextVar("sharing", default=ALONE)


def shared_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``function`` of every item; inside ``Ranks.sharing`` every rank computes some of them."""
    ranks = _sharing.get()
    return [function(item) for item in items] if ranks.count == 1 else ranks.map(function, items)


def _outline(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def _owners(costs: Sequence[float], count: int) -> list[int]:
    """A rank for every cost: the dearest first, to whoever has least."""
    loads, owners = [0.0] * count, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += costs[i]
    return owners
