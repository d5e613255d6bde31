"""One model trained by several processes, which join gradients and statistics and share factorizations.

Every rank has the same parameters and a part of each batch. The mean over the batch is the mean over the parts,
weighted by their loss terms. The collectives belong to torch.distributed's default process group, whose timeout bounds
the wait for a rank that hangs. Without a group there is one rank, and no function here communicates.
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

from curvbench import numerics, states

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """The number ``rank`` of this process among ``count`` processes.

    Every method may raise:
        ConnectionError: another rank has ended, or did not answer within the group's timeout.
    """

    rank: int = 0
    count: int = 1

    @staticmethod
    def here() -> Ranks:
        """The ranks of the default process group, or the only rank if there is no group."""
        grouped = dist.is_available() and dist.is_initialized()
        return Ranks(dist.get_rank(), dist.get_world_size()) if grouped else ALONE

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the values of the first rank."""
        if self.count > 1:
            self._together(tensors, partial(dist.broadcast, src=0, async_op=True))

    def first(self, find: Callable[[], Result]) -> Result:
        """The result of ``find`` on the first rank, given to all ranks."""
        if self.count == 1:
            return find()
        results: list[Any] = [find() if self.rank == 0 else None]
        with self._answered():
            dist.broadcast_object_list(results, src=0)
        return results[0]

    def all(self, item: Item) -> list[Item]:
        """The items of all ranks, in the order of the ranks."""
        return [item] if self.count == 1 else self._gathered(item)

    def total(self, summand: Tensor) -> Tensor:
        """The sum of the ranks' summands."""
        if self.count == 1:
            return summand
        total = summand.clone()
        self._sum([total])
        return total

    def mean(self, values: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean of the ranks' values."""
        if self.count == 1:
            return values
        return self.total(torch.where(weights > 0, weights * values, 0.0)) / self.total(weights)

    def share(self, *counts: int) -> float:
        """This rank's share of the batch, see ``shares``; raises ValueError as ``shares`` does."""
        return 1.0 if self.count == 1 else shares(self._gathered(counts))[self.rank]

    def join_gradients(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        """Replace ``.grad`` by the sum over ranks, weighted by their shares; a gradient that no rank has stays None."""
        if self.count == 1:
            return
        counts = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        self._sum([counts])
        reached = [p for p, count in zip(parameters, counts.tolist(), strict=True) if count]
        for p in reached:
            p.grad = torch.zeros_like(p) if p.grad is None else (share * p.grad).contiguous()
        self._sum([p.grad for p in reached if p.grad is not None])

    def join_state(self, state: Any, share: float) -> Any:
        """The sum over ranks of a state's floating-point tensors, weighted by the ranks' shares."""
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
            ValueError: on every rank, the error that ``function`` raised on one rank.
        """
        owners = _owners([_factorization_cost(item) for item in items], self.count)
        own = [i for i, owner in enumerate(owners) if owner == self.rank]
        computed: dict[int, Any] = {}
        reason = ""
        try:
            results = numerics.checked_together(lambda: [function(items[i]) for i in own])
            computed = {i: states.mapped(result, Tensor.contiguous) for i, result in zip(own, results, strict=True)}
        except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            reason = str(error)
        gathered = self._gathered((reason, {i: states.mapped(result, _outline) for i, result in computed.items()}))
        if reasons := [reason for reason, _ in gathered if reason]:
            raise ValueError(reasons[0])
        device = next(t.device for item in items for t in states.tensors(item))
        outlines = {i: outline for _, outlines_of_rank in gathered for i, outline in outlines_of_rank.items()}
        everywhere = [
            computed[i] if i in computed else states.mapped(outlines[i], lambda t: torch.empty_like(t, device=device))
            for i in range(len(items))
        ]
        for owner, result in zip(owners, everywhere, strict=True):
            self._together(states.tensors(result), partial(dist.broadcast, src=owner, async_op=True))
        return everywhere

    def _gathered(self, message: Any) -> list[Any]:
        """The messages of all ranks, in the order of the ranks."""
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
    """The share of each part in a batch, from the parts' counts of terms, of samples, ...

    The shares are equal if a count is zero everywhere.

    Raises:
        ValueError: the shares differ from one count to another.
    """
    kinds = zip(*parts, strict=True)
    by_count = [[n / sum(counts) if sum(counts) else 1 / len(parts) for n in counts] for counts in kinds]
    if any(max(by_part) - min(by_part) > _ROUNDING for by_part in zip(*by_count, strict=True)):
        raise ValueError(
            f"give each part of a batch the same number of loss terms per sample, got (terms, samples) {[*parts]}"
        )
    return by_count[0]


_ROUNDING = 1e-12  # quotients of equal shares differ by less
ALONE = Ranks()
_sharing: ContextVar[Ranks] = ContextVar("sharing", default=ALONE)


def shared_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``function`` of every item; inside ``Ranks.sharing`` every rank computes some of them."""
    ranks = _sharing.get()
    if ranks.count == 1:
        return numerics.checked_together(lambda: [function(item) for item in items])
    return ranks.map(function, items)


def _outline(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def _factorization_cost(item: Any) -> float:
    """The n^3 of an item's matrices of order n, up to a constant."""
    return sum(t.numel() ** 1.5 for t in states.tensors(item))


def _owners(costs: Sequence[float], count: int) -> list[int]:
    """A rank for every cost: the largest cost first, each to the rank with the smallest load."""
    loads, owners = [0.0] * count, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += costs[i]
    return owners
