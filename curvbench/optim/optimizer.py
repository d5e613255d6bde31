"""NaturalGradient: an optimizer on any probe, so that the measured code is the code that trains.

A step of the parameters that the probe covers; order and kind of momentum are the probe's own (``StepRule``)::

    statistics and factorization, every ``stat_every`` and ``refresh_every`` steps
    p = (represented matrix, damped)^-1 g
    p <- p min(1, sqrt(kl_clip / (lr^2 <p, g>)))
    m <- momentum m + p
    theta <- (1 - lr weight_decay) theta - lr m

All other parameters (with ``parameters="weights"`` norms and embeddings) take p = g, or AdamW's step at a rate of their
own if ``others_lr`` is given or the method's public code leaves them to AdamW (``StepRule.others``). If ``kl_clip`` is
twice a trust radius, the clip is QNG's trust region. LNGD's layer-wise rate and FNGD's first epoch are hyperparameters
of their probes.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from curvbench import numerics
from curvbench.instance import Inputs, Instance
from curvbench.instance.contents import Contents, RandomStates, mapped
from curvbench.instance.inputs import SampleInputs, arguments, batch_contents, inputs_of, named_inputs, shapes
from curvbench.instance.likelihood import Loss, likelihood
from curvbench.instance.outputs import Chooser, chosen
from curvbench.instance.passes import full_precision, in_network_pass
from curvbench.instance.refusals import refuse_untracked
from curvbench.instance.tape import Tape, evaluation, mode_readers
from curvbench.numerics import widened
from curvbench.optim.curvature import Checks, Curvature
from curvbench.optim.hooks import unwatch, watch
from curvbench.optim.passes import (
    Opened,
    Pass,
    Statistics,
    accumulates,
    current_task,
    kept,
    may_share,
    open_pass,
    tape_of,
)
from curvbench.optim.terms import FORWARD, targets_of
from curvbench.parts.moments import Moments, Rates
from curvbench.parts.weighted import weigh_backward
from curvbench.spec import Decay, Diverged, Parameters, Probe, Unsupported, Weighs, refuse_parameters
from curvbench.states.ranks import Ranks
from curvbench.words import refuse_type

_COPIED = {
    *("model", "probe", "loss", "outputs", "parameters", "sample_inputs", "statistics", "kl_clip"),
    *("others_rate", "decoupled_weight_decay", "_curvature", "_layers", "_has_adamw"),
}
ADAMW = Rates(first=0.9, second=0.999, epsilon=1e-8)  # the defaults of torch.optim.AdamW
BUFFERS = ("momentum_buffer", "first", "second")  # tensors that the state of a parameter may hold

MIXED = "a step had calls of the model and of optimizer.forward: call either of them until step()"


class Trained(NamedTuple):
    """A parameter that has a gradient, its group and its learning rate."""

    parameter: nn.Parameter
    group: Mapping[str, Any]
    rate: float


class Batch(NamedTuple):
    """A batch whose statistics are due.

    ``tape``: the record of the training pass. None means that statistics make a pass of their own, in evaluation mode
    or with the random ``states`` of the training pass. ``watched``: the tensors by name that must not change before
    ``step``. ``contents``: what these tensors held in the training pass.
    """

    inputs: Inputs
    targets: Tensor
    tape: Tape | None
    watched: Mapping[str, Any]
    contents: Contents
    states: RandomStates | None = None

    def of(self, model: Instance, gradients: Mapping[str, Tensor] | None, verify: bool) -> Instance:
        """The batch as an instance of a model; raises ValueError if a watched tensor has been written to."""
        changed = self.contents.changed(self.watched)
        if changed is not None:
            raise ValueError(
                f"the contents of {changed} changed between the forward pass and step(), so that statistics would "
                "come from another pass: give the model a copy of its batch, and write to weights after step()"
            )
        return model.with_batch(self.inputs, self.targets, self.tape, gradients, verify, self.states)


class NaturalGradient(torch.optim.Optimizer):
    """Trains ``model`` by the preconditioned gradients of ``probe``.

    A training loop stays as it is: ``criterion(model(x), y).backward()`` and ``step()``. Two hooks on the model see its
    passes, where statistics are due; ``close`` removes them. The gradient is the content of ``.grad``. The statistics
    are those of the batch whose outputs got a gradient, under the likelihood ``loss``. Its loss terms are read from
    that gradient: a term without gradient (padding) is none, and the gradient of another loss is refused. If several
    batches add to ``.grad`` before a step, the statistics are a mean over these batches, weighted by loss terms; a
    probe whose states are no means over the batch refuses several batches. Passes without gradients are not looked at.

    ``forward`` calls the model with the targets at hand, which need not be read then: the loss may be any. A probe that
    weighs samples in the backward pass (FNGD after its first epoch) needs it. In one step all passes are of one kind.

    If no module reads in the training pass whether it trains, the statistics come from the training pass itself,
    because the pass of evaluation mode would be the same. BatchNorm and dropout read this. With them the gradient is
    that of training mode, in which BatchNorm couples the samples, so that no sample has a score of its own. The
    statistics then come from a pass of their own in evaluation mode, with the running means and variances of that
    time. Compiled code runs uncompiled in a pass whose statistics are due. Under autocast, or with weights in float16
    or bfloat16, the pass of the statistics runs in float32. Factorizations and momentum use float32 too, and the step
    is rounded once, where it is added to the weights.

    A method whose statistic is the batch gradient with data labels (Adam, Shampoo) takes the training gradient. After
    its first epoch FNGD applies its sample weights in the ordinary backward pass and needs no extra one: ``.grad`` of
    the covered parameters is then its step. With a ``kl_clip``, which needs the gradient too, FNGD makes an extra pass.
    If the pass is shared and the statistics read output gradients for the data's labels (``fisher_type="empirical"``),
    they take the output gradients of the loss's own backward pass, provided that the loss is a multiple of the
    likelihood's.

    The layers are those that the first batch calls in evaluation mode. They stay the same, and so do their frozen
    parameters. A layer that a later batch skips does not move and keeps its statistics, momentum and averages. Probes
    without statistics per layer (``full``, ``eigen``, ``fngd``, ``ginger``, ``lbfgs``, ``qng``) take the scores of a
    skipped layer as zero, which is their value.

    In a process group of torch.distributed (``torchrun``) every rank takes its part of the batch. The
    step is that of the whole batch: the optimizer joins gradients and statistics, each rank's weighted by its loss
    terms. The model must therefore not be wrapped in DistributedDataParallel. Each rank factorizes some of the layers
    for all ranks, and draws sampled labels with a seed of its own. After the start each rank has its own buffers
    (running means of BatchNorm). A probe whose states are no means over the batch is refused. If a rank ends or does
    not answer, the other ranks end with a ConnectionError.

    >>> import torch.nn.functional as F, curvbench as cb
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> x, y = torch.randn(64, 8), torch.arange(64) % 4
    >>> optimizer = NaturalGradient(model, cb.probe("kfac", damping=0.1), lr=0.5, momentum=0.9, kl_clip=0.01)
    >>> for _ in range(50):
    ...     optimizer.zero_grad()
    ...     loss = F.cross_entropy(model(x), y)
    ...     loss.backward()
    ...     optimizer.step()
    >>> bool(loss < 1)
    True

    Args:
        model: a model as ``Instance`` takes it; the first batch verifies it.
        probe: a method with its hyperparameters, damping among them.
        lr: the learning rate of parameter groups that set none.
        momentum: the momentum of parameter groups that set none; a probe with a momentum of its own uses that one for
            the parameters that it covers.
        weight_decay: the weight decay of parameter groups that set none.
        loss: the likelihood of the curvature as ``Instance`` takes it; in a process group ``cross_entropy`` or
            ``gaussian``.
        outputs: a function from what the model returns to the tensor of its outputs, as ``Instance`` takes it.
        sample_inputs: the dimension of the samples by the name of an input, as ``Instance`` takes it.
        statistics: the mode whose pass gives the statistics: ``training``, the pass as it was, in which BatchNorm
            couples the samples; ``evaluation``; or ``auto``, the training pass where both modes compute the same, else
            evaluation mode.
        parameters: what the probe covers: ``all`` trainable parameters, or the ``weights`` of linear layers and
            convolutions with their biases.
        params: the parameters or parameter groups to train. None means all parameters.
        stat_every: the number of steps from one update of the statistics to the next.
        refresh_every: the number of steps from one factorization to the next; a method without factorizations uses its
            latest statistics.
        kl_clip: the bound of lr^2 <p, g>, the predicted change of the outputs' distribution. None means no bound.
        ema: the weight of the old statistics in a running average that begins with the first statistics; 0 keeps the
            latest statistics only.
        decoupled_weight_decay: True shrinks the parameters; False adds their multiple to the gradient, as
            ``torch.optim.SGD`` does.
        decay: hyperparameters of the probe, its damping for instance, that fall with every step; a factorization keeps
            the values that it was made with until the next factorization.
        others_lr: the learning rate of AdamW on the parameters that the probe does not cover; it changes with that of
            their group, whose multiple ``others_lr / lr`` it is. None means the group's own rate if the probe's rule
            leaves these parameters to AdamW, and the gradient as their direction if not.

    Raises:
        ValueError: an argument is out of range, or the probe has no statistics that ``ema`` could average.
        Unsupported: in a process group, the probe's states are no means over the batch, or the loss is no name.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        lr: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        loss: Loss = "cross_entropy",
        outputs: Chooser | None = None,
        sample_inputs: SampleInputs | None = None,
        statistics: Statistics = "auto",
        parameters: Parameters = "all",
        params: Iterable[Any] | None = None,
        stat_every: int = 1,
        refresh_every: int = 1,
        kl_clip: float | None = None,
        ema: float = 0.0,
        decoupled_weight_decay: bool = True,
        decay: Sequence[Decay] = (),
        others_lr: float | None = None,
    ) -> None:
        refuse_type("model", model, nn.Module, "give the module itself, and some of its parameters as params=")
        refuse_untracked(model)
        refuse_type("probe", probe, Probe, "give curvbench.probe(name)")
        if kl_clip is not None and not 0 < kl_clip < math.inf:
            raise ValueError(f"kl_clip must be finite and above zero, or None, got {kl_clip}")
        if statistics not in get_args(Statistics):
            raise ValueError(f"statistics must be 'auto', 'evaluation' or 'training', got {statistics!r}")
        likelihood(loss)
        refuse_parameters(parameters)
        by_adamw = probe.rule.others == "adamw"
        self.model, self.loss, self.parameters = model, loss, "weights" if by_adamw else parameters
        self._has_adamw, self.others_rate = by_adamw or others_lr is not None, _others_rate(others_lr, lr)
        self.outputs, self.sample_inputs, self.statistics = outputs, sample_inputs, statistics
        self.kl_clip, self.decoupled_weight_decay = kl_clip, decoupled_weight_decay
        self._begin()
        rates = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(model.parameters() if params is None else params, rates)
        self._ranks = _joined(model, probe)
        if self._ranks.count > 1 and not isinstance(loss, str):
            raise Unsupported(
                f"the parts of ranks are joined as means over terms, which {likelihood(loss).name} need not be: give "
                "loss='cross_entropy' or 'gaussian'"
            )
        self._curvature = Curvature(probe, stat_every, refresh_every, ema, self._ranks, decay)
        self._layers: list[list[Any]] | None = None
        self._watch()

    def _watch(self) -> None:
        """Hook the model, whose passes are of interest from now on."""
        self._hooks = watch(self.model, self)
        self._expect()

    def close(self) -> None:
        """Remove the hooks from the model; ``forward`` goes on to work."""
        self._close_passes()
        unwatch(self._hooks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        """Set the attributes to their values before the first batch."""
        self._names = {parameter: name for name, parameter in self.model.named_parameters()}
        self._verified: Instance | None = None
        self._checks = Checks()
        self._trained: dict[nn.Parameter, bool] = {}
        self._opened: list[Opened | None] = []  # None for a call of the model inside of its own pass
        self._expects = self._is_own_pass = False
        self._drop_batch()

    def rest_checks(self) -> None:
        """Compare no more batches with plain autograd, so that a few steps cost what a step costs in the long run."""
        self._checks.rests = True

    def _drop_batch(self) -> None:
        self._terms = 0
        self._arrived: list[Pass] = []
        self._taken: list[Pass] = []
        self._batch: Batch | None = None
        self._next_state: Any = None  # of a probe that has weighed the samples in this step's backward pass

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does, or add nothing and raise ValueError.

        Raises:
            ValueError: torch refuses the group, a tensor is no parameter of the model, or a setting is out of range.
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
            if not isinstance(group[name], int | float | Tensor) or not 0 <= group[name] < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {group[name]}")
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}")

    def __getstate__(self) -> dict[str, Any]:
        """The state that ``copy.deepcopy`` and ``pickle`` take, with the model and the curvature.

        The batch of an unfinished step is left out, as gradients are. If the pair ``(model, optimizer)`` is copied, the
        copied optimizer trains the copied model.
        """
        return {**super().__getstate__(), **{name: vars(self)[name] for name in vars(self).keys() & _COPIED}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "model" in state:  # torch also calls this with a part of the state
            self._ranks = self._curvature.ranks = Ranks.here()
            self._begin()
            self._watch()

    @property
    def probe(self) -> Probe:
        """The probe as it is at the next step."""
        return self._curvature.probe

    def _expect(self) -> None:
        """Find out whether the next pass is of interest."""
        self._expects = self._verified is None or self._curvature.is_due or self._ranks.count > 1

    def begin_pass(self, is_compiled: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called by a hook before a pass of the model: it is followed if its statistics are due."""
        if self._opened:
            if self._opened[0] is not None and self._opened[0].is_running:
                self._opened.append(None)
                return
            self._close_passes()
        if not self._expects or not torch.is_grad_enabled() or self._is_own_pass or in_network_pass():
            return
        if len(self._arrived) > 1:
            self._gather_passes()
        instance = None if is_compiled or not self._curvature.is_due else self._verified
        self._opened.append(open_pass(self.model, self._inputs(args, kwargs), instance, self.statistics))

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        return inputs_of(self.model.forward, args, kwargs)

    def end_pass(self, returned: Any) -> Any:
        """Called by a hook after a pass; gives outputs whose backward pass keeps the graph, or None for none."""
        opened = self._opened.pop() if self._opened else None
        if opened is None:
            return None
        opened.stack.close()
        return None if returned is None else self._remember(opened, returned)

    def _close_passes(self) -> None:
        """End what passes that were interrupted have left open."""
        while self._opened:
            if (opened := self._opened.pop()) is not None:
                opened.stack.close()

    def _remember(self, opened: Opened, returned: Any) -> Tensor | None:
        """Have the pass arrive when its outputs get a gradient; the outputs that keep the graph, if they do."""
        outputs = chosen(returned, self.outputs)
        first = outputs if isinstance(outputs, Tensor) else outputs[0]
        if not first.requires_grad:
            return None
        tape = tape_of(opened, returned, self._verified, self.statistics)
        watched = {**named_inputs(opened.inputs), **self._weights()} if self._curvature.is_due else {}
        detached = mapped(outputs, Tensor.detach)
        contents = Contents.of(watched)
        seen = Pass(opened.inputs, detached, tape, opened.states, watched, contents, self._curvature.steps)
        arrive = partial(_arrive, weakref.ref(self), seen)
        if tape is not None:
            return kept(seen, arrive, self.probe.reads_output_gradients)
        first.register_hook(arrive)
        return None

    def _weights(self) -> dict[str, Tensor]:
        return {f"parameter {name!r}": parameter for parameter, name in self._names.items()}

    def _take_pass(self, seen: Pass, gradient: Tensor) -> None:
        """Count a pass whose outputs have got a gradient that goes on to ``.grad``.

        The passes before it do not count if their gradients were cleared.
        """
        trained = [p for group in self.param_groups for p in group["params"]]
        if seen.step != self._curvature.steps or not accumulates(trained):
            return
        if self._arrived and not self._has_gradients() and self._arrived[-1].task != current_task():
            self._forget()
        seen.take(gradient)
        if seen not in self._arrived:
            self._arrived.append(seen)

    def _has_gradients(self) -> bool:
        """Whether a gradient is there; one that is zero everywhere was cleared with ``set_to_none=False``."""
        gradients = (p.grad for group in self.param_groups for p in group["params"])
        return any(gradient is not None and bool(gradient.any()) for gradient in gradients)

    def _forget(self) -> None:
        """Forget the batches of a step that is not made."""
        self._drop_batch()
        self._curvature.drop_parts()

    def _gather_passes(self) -> None:
        """Add all passes but the last to this step's statistics, so that their graphs can go."""
        if not self._has_gradients():
            self._forget()
            return
        earlier, self._arrived = self._arrived[:-1], self._arrived[-1:]
        self._take_batches(earlier)
        self._gather()

    def _take_batches(self, passes: Sequence[Pass]) -> None:
        """Make passes the batches of this step: the last is the batch, and those before it are its parts."""
        for seen in passes:
            assert seen.gradient is not None
            with torch.enable_grad():
                targets = targets_of(likelihood(self.loss), seen.outputs, seen.gradient)
                self._count_terms(targets)
                self._verified_on(seen.inputs, targets)
            if self._batch is not None:
                self._gather()
            if self._curvature.is_due:
                self._batch = Batch(seen.inputs, targets, seen.tape, seen.watched, seen.contents, seen.states)

    def _take_passes(self) -> None:
        """Make the passes that have got gradients the batches of this step."""
        self._close_passes()
        arrived, self._arrived = self._arrived, []
        if arrived and (self._batch is not None or self._next_state is not None):
            raise ValueError(MIXED)
        if arrived and self.kl_clip is None and isinstance(self.probe, Weighs) and self.probe.needs_targets:
            raise ValueError(
                f"{self.probe.name} weighs samples in the backward pass, so that targets come first: {FORWARD}"
            )
        self._take_batches(arrived)
        self._taken = arrived

    def forward(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """The model's outputs, from which the loss is computed; the batch is remembered if its statistics are due.

        Raises:
            ValueError: the model or the batch has no exact per-sample Fisher; ``Instance`` says why.
            Unsupported: the probe does not cover the model.
        """
        if not torch.is_grad_enabled():
            return self._call(inputs)
        if self._arrived:
            if self._has_gradients():
                raise ValueError(MIXED)
            self._forget()
        if self._batch is not None or self._next_state is not None:
            self._gather()
        self._count_terms(targets)
        # the clip needs the gradient, which a pass with sample weights does not leave
        outputs = self._weigh(inputs, targets) if self.kl_clip is None else None
        return self._record(inputs, targets) if outputs is None else outputs

    def _count_terms(self, targets: Tensor) -> None:
        if self._ranks.count > 1:  # the gradients of ranks are weighted by their loss terms
            self._terms += int(likelihood(self.loss).valid(targets).sum())

    def _call(self, inputs: Inputs) -> Tensor:
        args, kwargs = arguments(inputs)
        with self._own_pass():
            outputs: Tensor = self.model(*args, **kwargs)
        return outputs

    @contextmanager
    def _own_pass(self) -> Iterator[None]:
        """Inside, the hooks look away."""
        self._is_own_pass = True
        try:
            yield
        finally:
            self._is_own_pass = False

    def _record(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """The model's outputs; if statistics are due, their pass is recorded and the batch remembered."""
        instance = self._verified_on(inputs, targets)
        if not instance.returns_outputs:
            raise ValueError("forward gives outputs (N, C) or (N, T, C): wrap the model, or call it in the plain loop")
        if not self._curvature.is_due:
            return self._call(inputs)
        states = RandomStates.now(instance.device) if self.statistics == "training" else None
        with mode_readers(self.model) as readers, self._own_pass():
            tape = instance.record(inputs, len(targets))
        shares = tape.fits and may_share(instance, self.statistics) and not (self.statistics == "auto" and readers)
        instance.likelihood.check(widened(tape.outputs.detach()), instance.arranged_targets(widened(targets)))
        watched = {**batch_contents(inputs, targets), **self._weights()}  # statistics' backward passes come at step()
        self._batch = Batch(inputs, targets, tape if shares else None, watched, Contents.of(watched), states)
        return tape.leaf(note=self.probe.reads_output_gradients) if shares else tape.outputs

    @torch.no_grad()
    @full_precision()
    def _gather(self) -> None:
        """Add the previous batch to this step's statistics, unless its gradients were cleared."""
        batch, was_weighed = self._batch, self._next_state is not None
        self._batch, self._next_state = None, None
        if not self._has_gradients():
            self._terms = 0
            self._curvature.drop_parts()
        elif was_weighed or self.probe.combines_by is None:
            raise ValueError(
                f"{self.probe.name} cannot combine the states of several batches into one: "
                "give the whole batch to one forward, or call step() or zero_grad() before the next forward"
            )
        elif batch is not None and self.probe.combines_by == "mean":  # else `.grad` holds the sum of both batches
            assert self._verified is not None
            verify = self._checks.due(shapes(batch.inputs), self._curvature.updates)
            self._curvature.take_part(batch.of(self._verified, None, verify))

    def _weigh(self, inputs: Inputs, targets: Tensor) -> Tensor | None:
        """The outputs with sample weights in their backward pass. None means that the probe has no weights."""
        if not isinstance(self.probe, Weighs) or self._curvature.state is None:
            return None
        with full_precision():
            batch = self._verified_on(inputs, targets).with_batch(inputs, targets)
            if (weighed := self.probe.weigh(self._curvature.state, batch)) is None:
                return None
            if self._checks.due(shapes(inputs), self._curvature.steps):
                batch.verify()
        weights, self._next_state = weighed
        with self._own_pass():
            tape = batch.record(inputs, len(targets), frozen=True)
        if not tape.fits:
            batch.survey_anew()
            with self._own_pass():
                tape = batch.record(inputs, len(targets), frozen=True)
        if not tape.fits:
            raise ValueError("the model uses its parameters in training mode in another way than in evaluation mode")
        batch.likelihood.check(widened(tape.outputs.detach()), batch.targets)
        weigh_backward(batch, tape, weights)
        return tape.outputs

    @full_precision()
    def _verified_on(self, inputs: Inputs, targets: Tensor) -> Instance:
        """The model as an instance; the first batch, also the first of a copied optimizer, verifies it."""
        if self._verified is None:
            with evaluation(self.model), self._others_frozen():
                verified = Instance(
                    self.model,
                    inputs,
                    targets,
                    self.loss,
                    outputs=self.outputs,
                    parameters=self.parameters,
                    sample_inputs=self.sample_inputs,
                )
            if reason := self.probe.unsupported(verified):
                raise Unsupported(reason)
            layers = [[layer.name, *layer.shape] for layer in verified.layers]
            _refuse_layers(self._layers, layers)
            self._layers, self._verified = layers, verified
            free = verified.left_out.keys()
            given = self._given()
            self._trained = {p: p.requires_grad for p, n in self._names.items() if p in given and n not in free}
            self._checks.shapes.add(shapes(inputs))
        return self._verified

    def _given(self) -> set[nn.Parameter]:
        return {p for group in self.param_groups for p in group["params"]}

    @contextmanager
    def _others_frozen(self) -> Iterator[None]:
        """Inside, parameters that the optimizer does not train are frozen: F is that of the others."""
        given = self._given()
        others = [p for p in self._names if p.requires_grad and p not in given]
        for p in others:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in others:
                p.requires_grad_(True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step, and return the loss that ``closure`` returns. None means that gradients are there already.

        A ``closure`` computes the loss, and its gradients.

        Raises:
            ValueError: statistics are due and no pass got a gradient, or that of another loss, or a matrix cannot be
                factorized.
            Diverged: a matrix cannot be factorized because the gradient or its square is not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_refrozen()
        self._take_passes()
        trained = [p for group in self.param_groups for p in group["params"]]
        self._ranks.join_gradients(trained, self._ranks.share(self._terms))
        by_name = self._with_gradients()
        for name, direction in self._directions(by_name).items():
            parameter, group, rate = by_name[name]
            if self.decoupled_weight_decay and group["weight_decay"]:
                parameter.mul_(1 - rate * group["weight_decay"])
            parameter.add_(direction, alpha=-rate)
        for seen in self._taken:
            seen.close()
        self._drop_batch()
        self._expect()
        return loss

    def _refuse_refrozen(self) -> None:
        """Refuse a parameter that was frozen or released after the first batch, which decides what is solved for."""
        for parameter, trained in self._trained.items():
            if parameter.requires_grad != trained:
                was, now = ("trained", "frozen") if trained else ("frozen", "trained")
                name = self._names[parameter]
                raise ValueError(f"{name!r} was {was} in the first batch and is {now} now: make a new NaturalGradient")

    def _with_gradients(self) -> dict[str, Trained]:
        trained: dict[str, Trained] = {}
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                name = self._names[parameter]
                factor = self.others_rate if name in self._others else 1.0
                trained[name] = Trained(parameter, group, factor * group["lr"])
        return trained

    @property
    def _others(self) -> Collection[str]:
        """Names of the parameters that AdamW trains, because the probe does not cover them."""
        return self._verified.left_out.keys() if self._verified is not None and self._has_adamw else ()

    def _directions(self, by_name: Mapping[str, Trained]) -> dict[str, Tensor]:
        """The directions that are subtracted from the parameters, before the learning rate."""
        gradients = {name: self._gradient(t.parameter, t.group) for name, t in by_name.items()}
        others = [name for name in by_name if name in self._others]
        apart = {name: self._adamw(by_name[name].parameter, gradients.pop(name)) for name in others}
        return {**apart, **self._own_directions(gradients, by_name)}

    def _own_directions(self, gradients: Mapping[str, Tensor], by_name: Mapping[str, Trained]) -> dict[str, Tensor]:
        """The directions of parameters that AdamW does not train."""
        if self.probe.rule.momentum != "step":
            vectors = self._with_momentum(gradients, by_name)
            return {**vectors, **self._solved(vectors, gradients, by_name)}
        solved = self._solved(gradients, gradients, by_name)
        finished = solved if self.probe.has_own_momentum else {}
        rest = {name: d for name, d in {**gradients, **solved}.items() if name not in finished}
        return {**finished, **self._with_momentum(rest, by_name)}

    def _gradient(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> Tensor:
        assert parameter.grad is not None
        gradient = widened(parameter.grad)
        if self.decoupled_weight_decay or not group["weight_decay"]:
            return gradient
        return gradient.add(parameter, alpha=group["weight_decay"])

    def _adamw(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """AdamW's direction for one more gradient of a parameter."""
        state, zeros = self.state[parameter], torch.zeros_like(gradient)
        old = Moments(state.get("first", zeros), state.get("second", zeros), state.get("taken", 0), terms=1)
        new = ADAMW.after(old, gradient, terms=1)
        state["first"], state["second"], state["taken"] = new.first, new.second, new.taken
        return ADAMW.step(new)

    def _with_momentum(self, directions: Mapping[str, Tensor], by_name: Mapping[str, Trained]) -> dict[str, Tensor]:
        return {name: self._smoothed(*by_name[name][:2], direction) for name, direction in directions.items()}

    def _smoothed(self, parameter: nn.Parameter, group: Mapping[str, Any], direction: Tensor) -> Tensor:
        """Momentum with one more direction: their sum with falling weights, or their bias-corrected average."""
        momentum, state = group["momentum"], self.state[parameter]
        if not momentum:
            return direction
        average = self.probe.rule.momentum == "average"
        weight = 1 - momentum if average else 1.0
        if "momentum_buffer" not in state:
            state["momentum_buffer"], state["taken"] = weight * direction, 0
        else:  # not in place, because a caller may hold the buffer of an earlier state_dict
            state["momentum_buffer"] = state["momentum_buffer"].mul(momentum).add_(direction, alpha=weight)
        state["taken"] += 1
        buffer: Tensor = state["momentum_buffer"]
        return buffer / (1 - momentum ** state["taken"]) if average else buffer

    @full_precision()
    def _solved(
        self, vectors: Mapping[str, Tensor], gradients: Mapping[str, Tensor], by_name: Mapping[str, Trained]
    ) -> dict[str, Tensor]:
        """The preconditioned ``vectors`` of the covered parameters, clipped."""
        if self._next_state is not None:
            self._curvature.skip_solve(self._next_state)
            return {}
        if self._verified is None or (self._curvature.is_due and self._batch is None):
            why = "statistics are due at this step" if self._verified else "no batch has been seen yet"
            raise ValueError(
                f"{why}, and no outputs of the model got a gradient: call the module that the optimizer was made with, "
                "or optimizer.forward(inputs, targets)"
            )
        batch = self._batch_with(gradients) if self._curvature.is_due else None
        vector = self._verified.pack(self._complete(vectors))
        try:
            steps = self._verified.unpack(self._curvature.solve(vector, batch, gradients.keys()))
        except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            if math.isfinite(vector.square().sum()):
                raise
            finite = bool(vector.isfinite().all())
            reason = "the gradient's square is infinite" if finite else "the gradient holds NaN or infinity"
            raise Diverged(reason) from error
        solved = {name: step for name, step in steps.items() if name in by_name}
        if self.kl_clip is None:
            return solved
        rates = {name: by_name[name].rate ** 2 for name in solved}
        change = sum(rates[name] * numerics.inner(step, vectors[name]) for name, step in solved.items())
        scale = min(1.0, math.sqrt(self.kl_clip / change)) if change > 0 else 1.0
        return {name: scale * step for name, step in solved.items()}

    def _batch_with(self, gradients: Mapping[str, Tensor]) -> Instance:
        """The batch as an instance with these gradients."""
        assert self._verified is not None and self._batch is not None
        verify = self._checks.due(shapes(self._batch.inputs), self._curvature.updates)
        return self._batch.of(self._verified, self._complete(gradients), verify)

    def _complete(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of all trainable parameters by name, with zeros for missing ones."""
        names = {name: p for p, name in self._names.items() if p.requires_grad}
        return {name: tensors[name] if name in tensors else torch.zeros_like(p) for name, p in names.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state of a torch optimizer and, as ``curvature``, the probe's; torch loads it with ``weights_only``."""
        common = super().state_dict()
        common["state"] = {key: dict(entry) for key, entry in common["state"].items()}
        return {**common, "curvature": self._curvature.state_dict(), "layers": self._layers}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue bit for bit from the ``state_dict`` of an optimizer with the same model, probe and arguments.

        Raises:
            ValueError: the state is that of another optimizer, probe, version or set of parameter groups.
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
        self._expect()
        trained = [p for group in self.param_groups for p in group["params"]]
        for index, entry in state_dict["state"].items():  # torch rounds loaded tensors to the dtype of the weights
            for name in entry.keys() & set(BUFFERS):
                self.state[trained[index]][name] = entry[name].to(trained[index].device)


def _arrive(optimizer: Callable[[], NaturalGradient | None], seen: Pass, gradient: Tensor) -> None:
    """Tell the optimizer, if it is still there, that the outputs of a pass have got a gradient."""
    if (watcher := optimizer()) is not None:
        watcher._take_pass(seen, gradient.detach())


def _others_rate(others_lr: float | None, lr: float) -> float:
    """AdamW's learning rate over ``lr``; None means the same."""
    if others_lr is None:
        return 1.0
    if not 0 <= others_lr < math.inf:
        raise ValueError(f"others_lr must be finite and not negative, or None, got {others_lr}")
    if not lr:
        raise ValueError(f"others_lr={others_lr} changes with lr, which is 0: give lr above zero")
    return others_lr / lr


def _joined(model: nn.Module, probe: Probe) -> Ranks:
    """The ranks that train the model together; all of them get the parameters and buffers of the first rank."""
    if isinstance(model, DistributedDataParallel):
        raise ValueError("give the module inside DistributedDataParallel: the optimizer joins the gradients itself")
    ranks = Ranks.here()
    if ranks.count > 1 and probe.combines_by is None:
        raise Unsupported(
            f"{probe.name} trains in one process only, because states of parts of a batch do not combine into one"
        )
    ranks.agree(tensor.data for tensor in (*model.parameters(), *model.buffers()))
    return ranks


def _refuse_layers(stored: Sequence[Any] | None, called: Sequence[Any] | None) -> None:
    """Refuse a batch that calls other layers than those of a loaded state. None means that none is loaded."""
    if stored is not None and stored != called:
        of, now = (", ".join(repr(name) for name, *_ in layers or ()) for layers in (stored, called))
        raise ValueError(
            f"the state is that of layers {of}; this batch goes through {now}: continue with the same model and the "
            "same frozen parameters, and with a batch that calls every layer"
        )
