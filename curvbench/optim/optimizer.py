"""NaturalGradient: an optimizer on any probe, so that what was measured is what trains.

A step of the parameters that the probe covers; order and kind of momentum are the probe's own (``StepRule``)::

    statistics and factorization, every ``stat_every`` and ``refresh_every`` steps
    p = (represented matrix, damped)^-1 g
    p <- p min(1, sqrt(kl_clip / (lr^2 <p, g>)))
    m <- momentum m + p
    theta <- (1 - lr weight_decay) theta - lr m

All other parameters (BatchNorm, embeddings) take p = g. With twice a trust radius for ``kl_clip`` the clip is QNG's
trust region. LNGD's layer-wise rate is a hyperparameter of its probe, and so is the first epoch of FNGD.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from curvbench import numerics
from curvbench.instance import Inputs, Instance
from curvbench.instance.contents import Contents
from curvbench.instance.inputs import arguments, batch_contents, shapes
from curvbench.instance.layers import describe, parameter_names
from curvbench.instance.likelihood import likelihood
from curvbench.instance.passes import autocasts, full_precision
from curvbench.instance.tape import Tape, evaluation, mode_readers
from curvbench.numerics import widened
from curvbench.optim.curvature import Checks, Curvature
from curvbench.parts.weighted import weigh_backward
from curvbench.spec import Decay, Diverged, Probe, Unsupported, Weighs
from curvbench.states.ranks import Ranks

_COPIED = {"model", "probe", "loss", "kl_clip", "decoupled_weight_decay", "_curvature", "_layers"}


class Moved(NamedTuple):
    """A parameter that has a gradient, and its group."""

    parameter: nn.Parameter
    group: Mapping[str, Any]


class Batch(NamedTuple):
    """What went through ``forward``, and the tape of its pass where statistics share it.

    ``watched``: the tensors by name that must be at ``step`` as they were, and their ``contents`` then.
    """

    inputs: Inputs
    targets: Tensor
    tape: Tape | None
    watched: Mapping[str, Any]
    contents: Contents

    def of(self, model: Instance, known: Mapping[str, Tensor] | None, verify: bool) -> Instance:
        """The batch as an instance of a model; raises ValueError where what is watched has been overwritten."""
        changed = self.contents.changed(self.watched)
        if changed is not None:
            raise ValueError(
                f"the contents of {changed} changed between optimizer.forward and step(), and statistics would be of "
                "another pass: give forward a copy of its batch, and write to weights after step()"
            )
        return model.with_batch(self.inputs, self.targets, self.tape, known, verify)


class NaturalGradient(torch.optim.Optimizer):
    """Trains ``model`` by the preconditioned gradients of ``probe``.

    The model is called through ``forward``, which remembers the batch for the curvature; the rest is any loop.
    The gradient is whatever has gathered in ``.grad``; the statistics are those of the same batch under the likelihood
    ``loss``: of the last ``forward`` or, where gradients of several gather before a step, of all of them, each weighed
    by its loss terms. A probe whose states are no means over the batch refuses to gather. The statistics come from the
    training pass itself where no module has looked in it whether it trains: such a pass is that of evaluation mode,
    whatever the weights. BatchNorm and dropout look: there the gradient is that of training mode, in which BatchNorm
    couples the samples and no sample has a score of its own, while the statistics come from a pass of their own in
    evaluation mode, with running means and variances as they are then. Compiled code runs as it was written where
    statistics are due. Under autocast and with weights in float16 or bfloat16 the statistics' pass runs in float32, as
    do factorizations and momentum, and the step is rounded once, where it is added to the weights. A method whose
    statistic is the batch gradient with data labels (Adam, Shampoo) takes the training gradient. FNGD after its first
    epoch weighs the samples in the training pass itself and has none besides: ``.grad`` of the covered parameters is
    then its step (without a ``kl_clip``, which needs the gradient too).
    Where the pass is shared and the statistics read output gradients for the data's labels
    (``fisher_type="empirical"``), they are those of the loss's own backward pass if that loss is a multiple of the
    likelihood's.

    Layers are those that the first batch calls in evaluation mode; they stay the same, and so does what is frozen of
    them. One that a later batch skips is not moved and keeps its statistics, momentum and averages; to a probe that has
    no statistics per layer (``full``, ``eigen``, ``fngd``, ``ginger``, ``lbfgs``, ``qng``) its scores in that batch are
    zero, which they are.

    In a process group of torch.distributed (``torchrun``) every rank gives its part of the batch to ``forward``. The
    step is that of the whole batch, of which each rank's part weighs as many loss terms as it has: gradients and
    statistics are joined here, so that the model must not be wrapped in DistributedDataParallel, and each rank
    factorizes some of the layers for all. Sampled labels are drawn by every rank with a seed of its own. Buffers
    (running means of BatchNorm) are each rank's own after the start. A probe whose states are no means over the batch
    is refused. A rank that ends or does not answer ends the others with a ConnectionError.

    >>> import torch.nn.functional as F, curvbench as cb
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> x, y = torch.randn(64, 8), torch.arange(64) % 4
    >>> optimizer = NaturalGradient(model, cb.probe("kfac", damping=0.1), lr=0.5, momentum=0.9, kl_clip=0.01)
    >>> for _ in range(50):
    ...     optimizer.zero_grad()
    ...     loss = F.cross_entropy(optimizer.forward(x, y), y)
    ...     loss.backward()
    ...     optimizer.step()
    >>> bool(loss < 1)
    True

    Args:
        model: as ``Instance`` takes it; verified on the first batch.
        probe: a method with its hyperparameters, damping among them.
        lr: learning rate, of a parameter group.
        momentum: of a parameter group; a probe that keeps momentum itself uses its own where it covers.
        weight_decay: of a parameter group.
        loss: ``cross_entropy`` or ``gaussian``: the likelihood of the curvature.
        params: parameters or parameter groups to train, by default all.
        stat_every: steps from one update of the statistics to the next.
        refresh_every: steps from one factorization to the next; a method that has none uses its latest statistics.
        kl_clip: bound on lr^2 <p, g>, the predicted change of the outputs' distribution, or None.
        ema: weight of the old statistics in a running average that begins with the first; 0 keeps the latest only.
        decoupled_weight_decay: shrink the parameters (True), or add their multiple to the gradient as
            ``torch.optim.SGD`` does.
        decay: numbers of the probe, its damping for instance, that fall with every step; a factorization keeps what
            it was made with until the next.

    Raises:
        ValueError: an argument out of range, or an average of a probe that keeps no statistics.
        Unsupported: in a process group, a probe whose states are no means over the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        lr: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        loss: str = "cross_entropy",
        params: Iterable[Any] | None = None,
        stat_every: int = 1,
        refresh_every: int = 1,
        kl_clip: float | None = None,
        ema: float = 0.0,
        decoupled_weight_decay: bool = True,
        decay: Sequence[Decay] = (),
    ) -> None:
        if kl_clip is not None and not 0 < kl_clip < math.inf:
            raise ValueError(f"kl_clip must be finite and above zero, or None, got {kl_clip}")
        likelihood(loss)
        self.model, self.loss = model, loss
        self.kl_clip, self.decoupled_weight_decay = kl_clip, decoupled_weight_decay
        self._begin()
        rates = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(model.parameters() if params is None else params, rates)
        self._ranks = _joined(model, probe)
        self._curvature = Curvature(probe, stat_every, refresh_every, ema, self._ranks, decay)
        self._layers: list[list[Any]] | None = None

    def _begin(self) -> None:
        """As between two steps, with a model that is not verified yet."""
        self._names = {parameter: name for name, parameter in self.model.named_parameters()}
        self._verified: Instance | None = None
        self._checks = Checks()
        self._trained: dict[nn.Parameter, bool] = {}
        self._may_share = False
        self._drop_batch()

    def _drop_batch(self) -> None:
        self._terms = 0
        self._batch: Batch | None = None
        self._weighed: Any = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; raises ValueError also for a tensor that is no parameter of the model, or a setting out of range.

        Nothing is added then.
        """
        super().add_param_group(param_group)
        try:
            self._refuse_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def _refuse_group(self, group: Mapping[str, Any]) -> None:
        if any(parameter not in self._names for parameter in group["params"]):
            raise ValueError("params holds a tensor that is no parameter of the model")
        for name in ("lr", "weight_decay"):
            if not 0 <= group[name] < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {group[name]}")
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}")

    def __getstate__(self) -> dict[str, Any]:
        """What ``copy.deepcopy`` and ``pickle`` take: the model and the curvature too, as they are between two steps.

        A batch that is under way is left behind, as gradients are. Copied together with its model, ``(model,
        optimizer)``, the copy trains the copied model.
        """
        return {**super().__getstate__(), **{name: vars(self)[name] for name in vars(self).keys() & _COPIED}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "model" in state:  # torch comes here with a part of it, too
            self._ranks = self._curvature.ranks = Ranks.here()
            self._begin()

    @property
    def probe(self) -> Probe:
        """The probe as it is at the next step."""
        return self._curvature.probe

    def forward(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """The model's outputs, of which the loss is to be made; the batch is remembered where statistics are due.

        Raises:
            ValueError: the model or the batch has no exact per-sample Fisher, see ``Instance``.
            Unsupported: the probe does not cover the model.
        """
        if torch.is_grad_enabled() and (self._batch is not None or self._weighed is not None):
            self._gather()
        if self._ranks.count > 1 and torch.is_grad_enabled():
            self._terms += int(likelihood(self.loss).valid(targets).sum())
        if torch.is_grad_enabled() and self.kl_clip is None and (found := self._weigh(inputs, targets)) is not None:
            return found
        known = self._known(inputs, targets) if torch.is_grad_enabled() else None
        if known is None or not self._curvature.is_due:
            args, kwargs = arguments(inputs)
            return self.model(*args, **kwargs)
        with mode_readers(self.model) as readers:
            tape = known.record(inputs)
        self._may_share = not readers and known.runs_as_it_is and not autocasts()
        known.likelihood.check(widened(tape.outputs.detach()), widened(targets))
        weights = {f"parameter {name!r}": parameter for parameter, name in self._names.items()}
        watched = {**batch_contents(inputs, targets), **weights}  # the statistics' backward passes come at step()
        self._batch = Batch(inputs, targets, tape if self._may_share else None, watched, Contents.of(watched))
        return tape.leaf(note=self.probe.reads_output_gradients) if self._may_share else tape.outputs

    @torch.no_grad()
    @full_precision()
    def _gather(self) -> None:
        """Take in the batch before as a part of this step's, unless its gradient is there no more."""
        batch, weighed = self._batch, self._weighed
        self._batch, self._weighed = None, None
        if all(p.grad is None for group in self.param_groups for p in group["params"]):
            self._terms = 0
            self._curvature.drop_parts()
        elif weighed is not None or self.probe.combines_by is None:
            raise ValueError(
                f"{self.probe.name} makes no step of several batches, for their states are not that of the whole: "
                "give the whole batch to one forward, or end the one before by step() or zero_grad()"
            )
        elif batch is not None and self.probe.combines_by == "mean":
            assert self._verified is not None
            verify = self._checks.due(shapes(batch.inputs), self._curvature.updates)
            self._curvature.take_part(batch.of(self._verified, None, verify))

    def _weigh(self, inputs: Inputs, targets: Tensor) -> Tensor | None:
        """The outputs, if the probe knows how to weigh the samples in their backward pass."""
        if not isinstance(self.probe, Weighs) or self._curvature.kept is None:
            return None
        with full_precision():
            batch = self._known(inputs, targets).with_batch(inputs, targets)
            if (found := self.probe.weigh(self._curvature.kept, batch)) is None:
                return None
            if self._checks.due(shapes(inputs), self._curvature.steps):
                batch.verify()
        weights, self._weighed = found
        tape = batch.record(inputs, frozen=True)
        batch.likelihood.check(widened(tape.outputs.detach()), batch.targets)
        weigh_backward(batch, tape, weights)
        return tape.outputs

    @full_precision()
    def _known(self, inputs: Inputs, targets: Tensor) -> Instance:
        """The model as it was verified on the first batch, or on the first since a state was loaded."""
        if self._verified is None:
            with evaluation(self.model):
                verified = Instance(self.model, inputs, targets, self.loss)
            if reason := self.probe.unsupported(verified):
                raise Unsupported(reason)
            layers = [[layer.name, *layer.shape] for layer in verified.layers]
            _refuse_layers(self._layers, layers)
            self._layers, self._verified = layers, verified
            self._trained = {p: p.requires_grad for p in self._names}
            self._checks.shapes.add(shapes(inputs))
        return self._verified

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` makes the loss and its gradients, through ``forward``, where it is given.

        Raises:
            ValueError: statistics are due and no batch went through ``forward``; or a matrix cannot be factorized.
            Diverged: so it is, because the gradient or its square is not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_refrozen()
        trained = [p for group in self.param_groups for p in group["params"]]
        self._ranks.join_gradients(trained, self._ranks.share(self._terms))
        moved = self._moved()
        for name, direction in self._directions(moved).items():
            parameter, group = moved[name]
            if self.decoupled_weight_decay and group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction, alpha=-group["lr"])
        self._drop_batch()
        return loss

    def _refuse_refrozen(self) -> None:
        """Layers are found once: one that is frozen or released later would be solved for, or not, as it was then."""
        for parameter, trained in self._trained.items():
            if parameter.requires_grad != trained and self._is_of_a_layer(name := self._names[parameter]):
                was, now = ("trained", "frozen") if trained else ("frozen", "trained")
                raise ValueError(f"{name!r} was {was} in the first batch and is {now} now: make a new NaturalGradient")

    def _is_of_a_layer(self, name: str) -> bool:
        """Whether a parameter belongs to a layer that is covered, or would be by now."""
        assert self._verified is not None
        module = name.rpartition(".")[0]
        covered = {name for layer in self._verified.layers for name in parameter_names(layer)}
        return name in covered or describe(module, self.model.get_submodule(module)) is not None

    def _moved(self) -> dict[str, Moved]:
        pairs = [(p, group) for group in self.param_groups for p in group["params"]]
        return {self._names[p]: Moved(p, group) for p, group in pairs if p.grad is not None}

    def _directions(self, moved: Mapping[str, Moved]) -> dict[str, Tensor]:
        """What is subtracted from each parameter, up to the learning rate."""
        gradients = {name: self._gradient(m) for name, m in moved.items()}
        if self.probe.rule.momentum != "step":
            queried = self._with_momentum(gradients, moved)
            return {**queried, **self._solved(queried, gradients, moved)}
        solved = self._solved(gradients, gradients, moved)
        own = solved if self.probe.has_own_momentum else {}
        rest = {name: d for name, d in {**gradients, **solved}.items() if name not in own}
        return {**own, **self._with_momentum(rest, moved)}

    def _gradient(self, moved: Moved) -> Tensor:
        parameter, group = moved
        assert parameter.grad is not None
        gradient = widened(parameter.grad)
        if self.decoupled_weight_decay or not group["weight_decay"]:
            return gradient
        return gradient.add(parameter, alpha=group["weight_decay"])

    def _with_momentum(self, directions: Mapping[str, Tensor], moved: Mapping[str, Moved]) -> dict[str, Tensor]:
        return {name: self._gathered(*moved[name], direction) for name, direction in directions.items()}

    def _gathered(self, parameter: nn.Parameter, group: Mapping[str, Any], direction: Tensor) -> Tensor:
        """Momentum with one more direction: their sum with falling weights, or their bias-corrected average."""
        momentum, kept = group["momentum"], self.state[parameter]
        if not momentum:
            return direction
        average = self.probe.rule.momentum == "average"
        weight = 1 - momentum if average else 1.0
        if "momentum_buffer" not in kept:
            kept["momentum_buffer"], kept["taken"] = weight * direction, 0
        else:  # not in place: a state that was asked for stays what it was
            kept["momentum_buffer"] = kept["momentum_buffer"].mul(momentum).add_(direction, alpha=weight)
        kept["taken"] += 1
        buffer: Tensor = kept["momentum_buffer"]
        return buffer / (1 - momentum ** kept["taken"]) if average else buffer

    @full_precision()
    def _solved(
        self, queried: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moved: Mapping[str, Moved]
    ) -> dict[str, Tensor]:
        """The preconditioned gradients of the covered parameters, clipped."""
        if self._weighed is not None:
            self._curvature.pass_over(self._weighed)
            return {}
        if self._verified is None or (self._curvature.is_due and self._batch is None):
            why = "statistics are due at this step" if self._verified else "no batch has been seen yet"
            raise ValueError(f"{why}: call the model as optimizer.forward(inputs, targets)")
        batch = self._seen(gradients) if self._curvature.is_due else None
        vector = self._verified.pack(self._complete(queried))
        try:
            found = self._verified.unpack(self._curvature.solve(vector, batch, gradients.keys()))
        except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            if math.isfinite(vector.square().sum()):
                raise
            finite = bool(vector.isfinite().all())
            reason = "the gradient's square is infinite" if finite else "the gradient holds NaN or infinity"
            raise Diverged(reason) from error
        solved = {name: step for name, step in found.items() if name in moved}
        if self.kl_clip is None:
            return solved
        rates = {name: moved[name].group["lr"] ** 2 for name in solved}
        change = sum(rates[name] * numerics.inner(step, queried[name]) for name, step in solved.items())
        scale = min(1.0, math.sqrt(self.kl_clip / change)) if change > 0 else 1.0
        return {name: scale * step for name, step in solved.items()}

    def _seen(self, gradients: Mapping[str, Tensor]) -> Instance:
        """The batch of the last ``forward``, with the gradients that were made of it."""
        assert self._verified is not None and self._batch is not None
        verify = self._checks.due(shapes(self._batch.inputs), self._curvature.updates)
        return self._batch.of(self._verified, self._complete(gradients), verify)

    def _complete(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With zeros for the trainable parameters that are not among them."""
        names = {name: p for p, name in self._names.items() if p.requires_grad}
        return {name: tensors[name] if name in tensors else torch.zeros_like(p) for name, p in names.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state of every torch optimizer and, as ``curvature``, the probe's; torch loads it ``weights_only``."""
        found = super().state_dict()
        found["state"] = {key: dict(kept) for key, kept in found["state"].items()}
        return {**found, "curvature": self._curvature.state_dict(), "layers": self._layers}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue bit for bit from ``state_dict`` of an optimizer with the same model, probe and arguments.

        Raises:
            ValueError: it comes from another optimizer, probe or version, or from other parameter groups.
        """
        if not {"curvature", "layers"} <= state_dict.keys():
            raise ValueError("this is no state of a NaturalGradient: it has no entries 'curvature' and 'layers'")
        curvature = copy.copy(self._curvature)
        curvature.load_state_dict(state_dict["curvature"])
        if self._verified is not None:
            _refuse_layers(state_dict["layers"], self._layers)
        super().load_state_dict({key: value for key, value in state_dict.items() if key not in ("curvature", "layers")})
        self._curvature, self._layers = curvature, state_dict["layers"] or self._layers
        self._drop_batch()
        trained = [p for group in self.param_groups for p in group["params"]]
        for index, kept in state_dict["state"].items():  # torch rounds what it loads to the dtype of the weights
            if "momentum_buffer" in kept:
                self.state[trained[index]]["momentum_buffer"] = kept["momentum_buffer"].to(trained[index].device)


def _joined(model: nn.Module, probe: Probe) -> Ranks:
    """The ranks that train the model together, with the parameters and buffers of the first."""
    if isinstance(model, DistributedDataParallel):
        raise ValueError("give the module inside DistributedDataParallel: the optimizer joins the gradients itself")
    ranks = Ranks.here()
    if ranks.count > 1 and probe.combines_by is None:
        raise Unsupported(
            f"{probe.name} trains in one process only: its states for parts of a batch do not make that of the whole"
        )
    ranks.agree(tensor.data for tensor in (*model.parameters(), *model.buffers()))
    return ranks


def _refuse_layers(kept: Sequence[Any] | None, found: Sequence[Any] | None) -> None:
    """Layers of a state, if it tells them, that are not those of the model and its batch."""
    if kept is not None and kept != found:
        of, now = (", ".join(repr(name) for name, *_ in layers or ()) for layers in (kept, found))
        raise ValueError(
            f"the state is that of layers {of}; this batch goes through {now}: continue with the same model, frozen as "
            "it was, and with a batch that calls every layer"
        )
