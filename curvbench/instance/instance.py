"""An instance: a model, a batch and a loss, seen as layer inputs and output gradients. The model is not changed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvbench.instance import layers as geometry
from curvbench.instance.contents import Contents, RandomStates, mapped, one_thread
from curvbench.instance.convolution import FrozenConvolutions
from curvbench.instance.extent import Extent
from curvbench.instance.inputs import (
    Inputs,
    SampleInputs,
    _leading_size,
    _sample_shapes,
    _widened,
    arguments,
    counted,
    cut,
    named_inputs,
    sample_dimensions,
)
from curvbench.instance.likelihood import Loss, cotangents, likelihood
from curvbench.instance.original import Original
from curvbench.instance.outputs import Chooser, Layout, chosen
from curvbench.instance.packing import as_parameters, packed, unpacked
from curvbench.instance.passes import Uncast, autocasts, called, full_precision, network_pass
from curvbench.instance.placing import as_real, densified
from curvbench.instance.refusals import (
    agree,
    refuse_coupled_samples,
    refuse_not_finite,
    refuse_other_model,
    refuse_output,
    refuse_storage,
    refuse_untracked,
    refuse_written,
)
from curvbench.instance.shadow import Shadows
from curvbench.instance.survey import Traced, roles_of, sizes_of, survey
from curvbench.instance.tape import Recording, Tape, evaluation, uncompiled, unfused_attention
from curvbench.instance.verification import coupling, pairwise_coupled, refuse_random_passes, wrong_layers
from curvbench.numerics import widened
from curvbench.spec.geometry import Layer, Parameters, refuse_parameters
from curvbench.uses import recurrent, rules  # noqa: F401  (they register the rules)
from curvbench.uses.blocks import Plan
from curvbench.uses.calls import Key
from curvbench.uses.tracer import Tracer
from curvbench.words import refuse_type

SURVEYED = 32  # samples whose rows tell the order of all rows of a larger batch
_COMPLEX = {torch.float16: torch.complex32, torch.float64: torch.complex128}


class Instance:
    """A model with one batch and a loss, ready to be measured.

    An instance covers every trainable parameter: its uses are traced (see ``curvbench.uses``), and what nothing
    recognises comes by plain autograd, exact and dearer. BatchNorm must be in evaluation mode; dropout is off. Samples
    may be coupled: then the score of a sample is the derivative of its own loss terms in this batch.

    The whole batch is verified once (see ``curvbench.instance.verification``). Afterwards model and batch must not
    change: every use compares their contents with copies. Each call leaves parameters, buffers, modes and random
    states as they were, and waits for a call from another thread to end.

    Weights, buffers, inputs and targets in float16 or bfloat16 are copied into float32, and the model runs in float32:
    the measured Fisher is that of the rounded numbers. Autocast is off, in the model's own ``forward`` as well.

    Args:
        model: any module; inputs and outputs have the batch first. Outputs are (N, C) or (N, T, C) with classes last,
            or (N, C, H, W) with targets (N, H, W).
        inputs: a tensor (N, ...), a tuple of arguments, or a mapping of keywords; a list is one argument. Tensors
            inside lists and mappings are inputs as well.
        targets: int64 class indices (N,) or (N, T) with -100 for ignored tokens, or for ``gaussian`` values
            shaped like the outputs; other losses take what torch gives them.
        loss: ``cross_entropy`` or ``gaussian`` (1/2 |f - y|^2 summed over outputs, mean over terms), a loss module of
            torch, a ``Likelihood``, or a function of one term's outputs and target.
        outputs: a function from what the model returns to the tensor of its outputs. None takes a tensor, the only one
            of a tuple, or ``logits``.
        parameters: ``all`` trainable parameters, or ``weights``: those of linear layers and convolutions, with their
            biases.
        sample_inputs: the dimension of the samples by the name of an input, or by its number; inputs that are not named
            belong to no sample. None means the first dimension of every input that is as long as the batch.

    Raises:
        ValueError: this class cannot give the exact Fisher; the text is a one-line reason.

    Attributes:
        dtype: dtype of passes, gradients and parameter vectors: the dtype of the weights, float32 at least.
        layers: the blocks of the parameter vector: weights, then lookups, then vectors, each in the order of
            ``named_parameters``.
        sizes: per block the numbers that cost models need.
        samples: N.
        terms: number of valid loss terms.
        returns_outputs: whether the model returns the outputs (N, C) or (N, T, C) themselves.
        left_out: why a trainable parameter belongs to no block, by its name.
        coupled: whether the outputs of a sample depend on the other samples of the batch.
        reached: names of the blocks that recorded passes of this batch have called so far.
    """

    @full_precision()
    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        targets: Tensor,
        loss: Loss = "cross_entropy",
        *,
        outputs: Chooser | None = None,
        parameters: Parameters = "all",
        sample_inputs: SampleInputs | None = None,
    ) -> None:
        refuse_type("model", model, nn.Module, "give the module itself")
        refuse_parameters(parameters)
        self._for_any_batch = self.likelihood = likelihood(loss)
        self.model, self.loss, self._choose = model, self.likelihood.name, outputs
        self.covered = parameters
        self._layout: Layout | None = None
        self.returns_outputs = True
        self.inputs, self.targets = _widened(inputs), widened(targets)
        self.samples = _leading_size(inputs, targets)
        if self.samples == 0:
            raise ValueError("the batch is empty: give at least one sample")
        refuse_untracked(model)
        refuse_storage({**dict(model.named_parameters()), **named_inputs(inputs), "targets": targets})
        self._trainable = {name for name, p in model.named_parameters() if p.requires_grad and p.numel()}
        self._read_model()
        refuse_coupled_samples(model)
        refuse_not_finite(
            {name: p for name, p in self.parameters.items() if name in self._trainable},
            {**named_inputs(inputs), **self._frozen, **self._buffers},
        )
        self._original: Original | None = Original.of(model, inputs, targets)
        self._enters_autocast = False
        self._draws_random_numbers = False
        self._sample_inputs = sample_inputs
        self._dimensions = sample_dimensions(self.inputs, self.samples, sample_inputs)
        self.guessed = () if sample_inputs is not None else tuple(self._dimensions)
        self._gradient: tuple[Tensor, Tensor] | None = None
        self._in_dtypes: dict[torch.dtype, Instance] = {}
        self._recorded: Tape | None = None
        self._given_gradients: Mapping[str, Tensor] | None = None
        self._needs_verification = False
        self._passes_alone = True
        self._states: RandomStates | None = None
        self._is_shadowed = False
        self._can_be_shadowed: bool | None = None
        self.reached: set[str] = set()
        self._first_outputs: Tensor | None = None
        first = self._try()
        self.classes, self.terms_per_sample = first.shape[-1], first[0].numel() // first.shape[-1]
        self._take_terms()
        if self._draws_random_numbers:
            refuse_random_passes(self, first, sorted(self._trainable))
        self._first = first
        self.coupled, self._of_no_sample = coupling(self, first)
        self._drop_input_of_no_sample()
        self.left_out: dict[str, str] = {}
        self._settle()
        self._first_outputs = self._first.clone()
        self._runs_in_float64 = self._try_float64()

    def _take_terms(self) -> None:
        """Count the loss terms of the targets, and take the weights that they have in the loss."""
        self.terms = int(self.likelihood.valid(self.targets).sum())
        self.likelihood = self._for_any_batch.for_batch(self.targets)

    def _drop_input_of_no_sample(self) -> None:
        if self._of_no_sample is not None:
            self._dimensions.pop(self._of_no_sample, None)

    def arranged(self, returned: Any) -> Tensor:
        """What the model returns as outputs (N, C) or (N, T, C), classes last; the first call arranges the targets."""
        outputs = chosen(returned, self._choose)
        if self._layout is None:
            self._layout = Layout.of(outputs, self.targets, self.likelihood)
            self.targets = self.arranged_targets(self.targets)
            self.returns_outputs = self._layout.outputs(outputs) is returned
        return self._layout.outputs(outputs)

    def arranged_targets(self, targets: Tensor) -> Tensor:
        """Targets as the model's loss has them, in the layout of the arranged outputs."""
        assert self._layout is not None, "the layout is known after the first forward pass"
        return self._layout.targets(targets)

    def _settle(self) -> None:
        """Find the blocks, and leave to plain autograd what its verification does not confirm."""
        try:
            wrong = self._surveyed(self._few())
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(f"the model cannot be differentiated: {str(error).splitlines()[0]}") from error
        if wrong:
            self.left_out |= wrong
            self._take_layers([layer for layer in self.layers if not wrong.keys() & set(layer.parameters)])

    def _few(self) -> Instance:
        """Some samples of a large batch, whose rows are in the same simple orders as all rows; or the whole batch."""
        if self.samples <= 2 * SURVEYED or self.coupled:
            return self
        few = self._take(slice(SURVEYED))
        try:
            few.plain_outputs()
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return self
        return few

    def _surveyed(self, some: Instance) -> dict[str, str]:
        """Take over the blocks that a survey of some samples finds; why columns of some parameters stay wrong."""
        uncut: frozenset[str] = frozenset()
        while True:
            plan, traced = survey(some, uncut)
            self.coupled = self.coupled or (plan.is_mixed and pairwise_coupled(self, self._first))
            if some is not self and not plan.is_plain:
                return self._surveyed(self)
            self._take_plan(plan)
            tape = self._with_alone(self._surveyed_tape(traced)) if some is self else None
            found = wrong_layers(self, tape)
            if found and some is not self:
                return self._surveyed(self)
            if found and tape is not None and tape.alone is not None:
                self._passes_alone = False
                continue
            self.left_out |= {name: found[name] for name in self.unused & found.keys()}
            wrong = {name: found[la.name] for la in self.layers if la.name in found for name in la.parameters}
            if wrong.keys() <= uncut:
                return wrong
            uncut |= wrong.keys()

    def _surveyed_tape(self, traced: Traced) -> Tape:
        """The survey's pass with the gradients that it has taken."""
        tape = self._tape(traced.tracer, traced.outputs, traced.leaves, self.layers)
        if traced.cotangent is not None:
            gradients = {number: traced.gradients.get(call.key) for number, (call, _) in enumerate(tape.calls)}
            tape.passed.update({number: g for number, g in gradients.items() if g is not None})
            tape.passed[-1] = traced.cotangent
        return tape

    def _take_plan(self, plan: Plan) -> None:
        self.plan = plan
        chosen = [layer for layer in plan.layers if self.covered == "all" or layer.level == 0]
        held = {name for layer in plan.layers for name in layer.parameters}
        self.unused = frozenset(self._trainable - held)
        self.left_out = dict.fromkeys(sorted(self.unused), "not used on this batch")
        if self.covered == "weights":
            others = held - {name for layer in chosen for name in layer.parameters}
            self.left_out |= dict.fromkeys(sorted(others), "no weight of a linear layer or a convolution")
        self.sizes = sizes_of(plan)
        self._take_layers(chosen)

    def _take_layers(self, layers: Sequence[Layer]) -> None:
        """Make these blocks, one after the other, the parameter vector."""
        if not layers:
            raise ValueError(f"no trainable parameter is left to measure: {_reasons(self.left_out)}")
        starts = accumulate((layer.size for layer in layers), initial=0)
        self.layers = tuple(replace(layer, start=start) for layer, start in zip(layers, starts, strict=False))
        self.sizes = {layer.name: self.sizes[layer.name] for layer in self.layers}
        self.size = sum(layer.size for layer in self.layers)

    @property
    def extent(self) -> Extent:
        """What the blocks hold of the trainable parameters, and what they leave out."""
        trainable = sum(_numbers(self.parameters[name]) for name in self._trainable)
        return Extent(self.covered, self.size, trainable, self.left_out, self.coupled)

    @property
    def coverage(self) -> float:
        """The share of the trainable parameters that the blocks hold."""
        return self.extent.share

    def __repr__(self) -> str:
        return f"Instance({self.samples} samples, {self.size} parameters; {self.extent})"

    @property
    def is_plain(self) -> bool:
        """Whether rows are in simple orders, which hold for parts of the batch and for other batches too."""
        return self.plan.is_plain

    def _read_model(self) -> None:
        """Take the present parameters and buffers of the model."""
        self.parameters = {name: widened(p.detach()) for name, p in self.model.named_parameters()}
        self._buffers = {name: widened(b.detach()) for name, b in self.model.named_buffers()}

    @property
    def _frozen(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.parameters.items() if name not in self._trainable}

    def _try(self) -> Tensor:
        """The outputs of one forward pass, with what it shows of the model; a model that cannot run is refused."""
        uncast = Uncast()
        copies = {name: p.clone() for name, p in self.parameters.items()}  # the pass may write to a copy
        before = RandomStates.now(self.device)
        try:
            with torch.no_grad(), uncast:
                outputs = self._forward(parameters=copies)
            draws = self._draws_random_numbers or before.drawn_from(RandomStates.now(self.device))
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            lowered = uncast.met or any(widened(p) is not p for p in self.model.parameters())
            note = " (in float32 without autocast: let its forward follow the dtype of its weights)" if lowered else ""
            raise ValueError(f"the model cannot be run on these inputs{note}: {str(error).splitlines()[0]}") from error
        finally:
            before.restore(self.device)
        refuse_written(Contents(self.parameters).changed(copies))
        refuse_output(outputs, self.samples)
        self.likelihood.check(outputs, self.targets)
        self._draws_random_numbers, self._enters_autocast = draws, uncast.met
        return outputs

    def trace(self, vetoed: Collection[Key], cloned: Collection[Key], uncut: Collection[str]) -> Traced:
        """A forward pass in which all trainable parameters are followed, those in ``uncut`` by autograd alone."""
        leaves = self._leaves([name for name in self.parameters if name in self._trainable])
        followed = self._followed(leaves, uncut)
        tracer = Tracer(followed, self.samples, vetoed, cloned)
        with torch.enable_grad():
            outputs = self._forward(tracer, as_parameters(leaves, self.parameters))
        return Traced(tracer, outputs, leaves)

    def _leaves(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Parameters as leaves of a new graph; a complex one as its real and imaginary parts, (..., 2)."""
        return {name: as_real(self.parameters[name].detach()).requires_grad_() for name in names}

    def _followed(self, leaves: Mapping[str, Tensor], uncut: Collection[str]) -> dict[str, Tensor]:
        """The leaves that a tracer follows; complex ones are left to autograd."""
        return {n: leaf for n, leaf in leaves.items() if n not in uncut and not self.parameters[n].is_complex()}

    def verify(self) -> None:
        """Compare the score columns with plain autograd again, after ``with_batch``.

        Where they differ, rows are assigned anew on this batch.

        Raises:
            ValueError: a block has no right columns in this batch.
        """
        checked = self._copy()
        checked._states = None  # samples may be coupled in the mode of training
        checked.reached = set()  # its passes are not those of the statistics
        if not _of_blocks(wrong_layers(checked), checked):
            return
        checked.survey_anew()
        self.plan, self.sizes, self._recorded = checked.plan, checked.sizes, None
        if wrong := _of_blocks(wrong_layers(checked), checked):
            name, reason = next(iter(wrong.items()))
            raise ValueError(f"block {name!r} has no right columns in this batch: {reason}")

    def survey_anew(self) -> None:
        """Find out how this batch, in this dtype, uses the parameters; the blocks stay.

        Raises:
            ValueError: the parameters have other blocks in this batch.
        """
        self.plan = self._same_blocks(survey(self, self.plan.uncut)[0])
        self.sizes = {**self.sizes, **{n: s for n, s in sizes_of(self.plan).items() if n in self.sizes}}

    def _same_blocks(self, plan: Plan) -> Plan:
        """A plan of another batch; raises ValueError if it has other blocks than this instance."""
        found = {layer.name: (layer.kind, layer.shape) for layer in plan.layers}
        held = {name for layer in plan.layers for name in layer.parameters}
        for layer in self.layers:
            is_unused = layer.name not in found and held.isdisjoint(layer.parameters)
            if not is_unused and found.get(layer.name) != (layer.kind, layer.shape):
                raise ValueError(
                    f"{layer.name!r} is used in another way in this batch: make a new Instance, or a new optimizer"
                )
        missing = {name: shape for name, shape in self.plan.shapes.items() if name not in plan.shapes}
        return replace(plan, shapes={**missing, **plan.shapes})

    def plain_outputs(self) -> Tensor:
        """The outputs of one forward pass of the plain model, without a graph."""
        with torch.no_grad():
            return self._forward()

    def record(self, inputs: Inputs, samples: int, frozen: bool = False) -> Tape:
        """The model's forward pass on other inputs, in its present mode; the graph leads to the parameters.

        ``frozen``: the graph does not lead to the blocks' parameters, so that a backward pass makes no gradients of
        them. ``samples``: N.
        """
        recording = self.recording(samples, frozen)
        args, kwargs = arguments(inputs)
        with recording.followed():
            returned = called(self.model, dict(recording.leaves) if frozen else {}, args, kwargs)
        return self.recorded(recording, returned)

    def recording(self, samples: int, frozen: bool = False) -> Recording:
        """What follows the parameters in a pass that others make; the arguments are those of ``record``."""
        own = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        held = {name for layer in self.layers for name in layer.parameters}
        leaves = {n: p.detach().requires_grad_() if frozen else p for n, p in own.items() if n in held}
        followed = {**own, **leaves} if self.plan.is_numbered else leaves
        tracer = Tracer(
            {name: leaf for name, leaf in followed.items() if name not in self.plan.uncut},
            samples,
            self.plan.vetoed,
            self.plan.cloned,
            live=not frozen,
        )
        tracer.take_constants([*self.model.buffers(), *(p for p in self.model.parameters() if not p.requires_grad)])
        return Recording(tracer, leaves)

    def recorded(self, recording: Recording, returned: Any) -> Tape:
        """The tape of a pass in which ``recording`` has followed the parameters; ``returned``: what the model gave."""
        return self._tape(recording.tracer, self.arranged(returned), recording.leaves, self.layers, keeps_graph=True)

    def samples_like(self, inputs: Inputs) -> int | None:
        """N of other inputs if their samples are shaped like this instance's; None if they are not, or nobody tells."""
        fits = _sample_shapes(inputs) == _sample_shapes(self.inputs)
        return counted(inputs, self.inputs, self.samples) if fits else None

    def _tape(
        self,
        tracer: Tracer,
        outputs: Tensor,
        leaves: Mapping[str, Tensor],
        layers: Sequence[Layer],
        keeps_graph: bool = False,
    ) -> Tape:
        roles = roles_of(layers)
        pairs = [(call, use) for call in tracer.calls if (use := self.plan.uses.get(call.key)) is not None]
        used = [(call, use) for call, use in pairs if use.role in roles or use.formed]
        return Tape(outputs, self.plan, roles, used, leaves, keeps_graph, fits=self.plan.fits(tracer.events))

    def with_batch(
        self,
        inputs: Inputs,
        targets: Tensor,
        tape: Tape | None = None,
        gradients: Mapping[str, Tensor] | None = None,
        verify: bool = False,
        states: RandomStates | None = None,
    ) -> Instance:
        """The present model with another batch; properties of the model are not verified again.

        Args:
            inputs: as for the constructor; samples of another shape cost a forward pass.
            targets: as for the constructor.
            tape: the tape that ``record`` gave for these inputs; it replaces every forward pass. None means that
                forward passes run, as they do where the samples have another shape or rows in no simple order.
            gradients: gradients of the mean loss for every trainable parameter, which the method ``gradients`` then
                returns. None means that they are computed.
            verify: whether ``verify`` runs before the first per-sample score is read.
            states: the random states with which passes run in the model's present mode, as a pass of training did. None
                means that they run in evaluation mode.
        """
        other = self._copy()
        other.inputs, other.samples = _widened(inputs), _leading_size(inputs, targets)
        other._dimensions = sample_dimensions(other.inputs, other.samples, self._sample_inputs)
        other._drop_input_of_no_sample()
        other.targets = self.arranged_targets(widened(targets))
        other._read_model()
        other._original = other._first_outputs = None  # no copies, because the batch is used in one step alone
        other._take_terms()
        if _sample_shapes(inputs) != _sample_shapes(self.inputs) or not self.plan.is_plain:
            first = other._try()
            other.classes, other.terms_per_sample = first.shape[-1], first[0].numel() // first.shape[-1]
            other.survey_anew()
            tape = None  # its rows are in the order of the first batch
        other._states = states
        other._recorded, other._given_gradients, other._needs_verification = tape, gradients, verify
        other.reached = set()
        return other

    def elsewhere(self, inputs: Inputs, targets: Tensor) -> Instance:
        """The same model on another batch, for ``loss_along`` alone: how that batch uses the parameters is not found.

        Inputs and targets are as for the constructor.
        """
        other = self._copy()
        other.inputs, other.samples = _widened(inputs), _leading_size(inputs, targets)
        other.targets = self.arranged_targets(widened(targets))
        other._original = other._first_outputs = None
        other._take_terms()
        return other

    def loss_along(self, step: Tensor) -> Callable[[float], float]:
        """The mean loss at the parameters minus a multiple of a vector (P,), as a function of the multiple.

        Each call is a forward pass without a graph; the model stays as it is.
        """
        moves = self.unpack(step)

        def loss(multiple: float) -> float:
            moved = {name: torch.add(self.parameters[name], move, alpha=-multiple) for name, move in moves.items()}
            with torch.no_grad():
                return float(self.likelihood.loss(self._forward(parameters=moved), self.targets))

        return loss

    def runs_in_float64(self) -> bool:
        """Whether the model runs in float64; a model that creates float32 constants in its ``forward`` may not."""
        return self._runs_in_float64

    def _try_float64(self) -> bool:
        """Whether a forward and a backward pass of one sample run in float64.

        The backward pass counts, because a checkpointed part runs there again with the model's own weights. A batch in
        float64 has been through both.
        """
        if self.dtype == self._first.dtype == torch.float64:
            return True
        try:
            with warnings.catch_warnings(action="ignore"):  # torch warns of a batch of one sample
                return self._runs(self if self.coupled else self.part(slice(1)))
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
        try:  # the model may need the whole batch
            return self._runs(self)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False

    def _runs(self, some: Instance) -> bool:
        tape = some.to(torch.float64).tape()
        tape.pull(torch.ones_like(tape.outputs))
        return tape.outputs.dtype == torch.float64

    def part(self, samples: slice) -> Instance:
        """The instance with some of the samples; ``terms`` stays the whole batch's, so that sums over parts add up.

        Raises:
            ValueError: the samples are coupled, so that a part of them has other scores.
        """
        self._refuse_coupled()
        return self._own(self._take(samples))

    def draw(self, count: int, seed: int) -> Instance:
        """The same model on ``count`` different samples in random order.

        Raises:
            ValueError: there are fewer samples, or the drawn samples have no loss term.
        """
        if not 1 <= count <= self.samples:
            raise ValueError(f"cannot draw {count} of {self.samples} samples: take between 1 and {self.samples}")
        self._refuse_coupled()
        order = torch.randperm(self.samples, device="cpu", generator=torch.Generator().manual_seed(seed))
        drawn = self._own(self._take(order[:count].to(self.device)))
        drawn._take_terms()
        if drawn.terms == 0:
            raise ValueError(f"{count} of {self.samples} samples were drawn without any loss term: draw more of them")
        return drawn

    def reordered(self, rows: Tensor, leave: str | None = None) -> Instance:
        """The same batch with the samples ``rows`` (N,), which may repeat a sample; the input ``leave`` stays."""
        return self._take(rows, leave)

    def _refuse_coupled(self) -> None:
        if self.coupled:
            raise ValueError(
                "the samples of this batch are coupled: their scores would be others in a part of it; take the whole "
                "batch at once"
            )

    def _own(self, other: Instance) -> Instance:
        """The other samples, with the owners of their rows found anew where they are in no simple order."""
        if not self.plan.is_plain:
            other.survey_anew()
        return other

    def _take(self, rows: slice | Tensor, leave: str | None = None) -> Instance:
        dimensions = {name: dim for name, dim in self._dimensions.items() if name != leave}
        other = self._copy()
        other._needs_verification, other._first_outputs = self._needs_verification, None
        other.inputs, other.targets = cut(self.inputs, rows, dimensions), self.targets[rows]
        other.samples = len(other.targets)
        return other

    def again(self) -> Instance:
        """The same batch as it was when it was made: without gradients and passes that later calls have kept."""
        other = self._copy()
        other.reached = set()
        return other

    def _copy(self) -> Instance:
        """A copy whose fields may be changed, without gradients and recorded passes."""
        other = copy.copy(self)
        other._gradient = other._recorded = other._given_gradients = None
        other._needs_verification, other._in_dtypes = False, {}
        return other

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of passes, gradients and parameter vectors."""
        return as_real(self.parameters[self.layers[0].parameters[0]]).dtype

    @property
    def runs_as_it_is(self) -> bool:
        """Whether the passes are the model's own: in the dtype of its weights, and without autocast to switch off."""
        return not self._enters_autocast and all(widened(p) is p for p in self.model.parameters())

    @property
    def device(self) -> torch.device:
        """Where model and batch lie."""
        return self.targets.device

    def to(self, dtype: torch.dtype) -> Instance:
        """The same instance with parameters, buffers, inputs and real targets rounded to another floating dtype.

        Complex tensors are rounded to the complex dtype of the same precision.
        """
        other = self._rounded(lambda value: widened(_rounded(value, dtype)))
        other._needs_verification = self._needs_verification
        other.targets = widened(_rounded(self.targets, dtype))
        return other

    def has_float64_values(self) -> bool:
        """Whether the model runs on float64 values: in float64, or in a float32 graph with shadows."""
        return self.runs_in_float64() or self._follows_shadows()

    def in_float64_values(self) -> Instance:
        """The same instance with passes on float64 values: in a float32 graph, or in float64 altogether.

        The graph is float32, whose backward passes take less time, if the instance is and ``Shadows`` can follow the
        model. Call it if ``has_float64_values``.
        """
        return self._shadowed() if self._follows_shadows() else self.to(torch.float64)

    def _shadowed(self) -> Instance:
        if self._needs_verification:  # here, because a comparison with a pass in fewer digits would tell less
            self._needs_verification = False
            self.verify()
        other = self._copy()
        other._is_shadowed = True
        return other

    def _follows_shadows(self) -> bool:
        if self._can_be_shadowed is None:
            self._can_be_shadowed = self.dtype == torch.float32 and not self.plan.generic and self._try_shadows()
        return self._can_be_shadowed

    def _try_shadows(self) -> bool:
        """Whether passes with shadows run, on the values of a float64 pass where there is one; tried on two samples."""
        some = self if self.coupled or not self.plan.is_plain else self.part(slice(2))
        try:
            tape = some._shadowed().tape()
            tape.pull(torch.ones_like(tape.outputs))
            if not self.runs_in_float64():
                return agree(tape.outputs, some.outputs())
            return agree(tape.values, some.to(torch.float64).outputs())
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False

    def in_dtype(self, dtype: torch.dtype) -> Instance:
        """The same instance with passes, gradients and parameter vectors in another real dtype; itself in its own.

        With float16 and bfloat16 the loss is computed in float32 from rounded outputs, as in training of mixed
        precision, and its gradients at the outputs are rounded. The result is made once.
        """
        if dtype == self.dtype:
            return self
        if dtype not in self._in_dtypes:
            self._in_dtypes[dtype] = self.to(dtype) if dtype.itemsize >= 4 else self._narrowed(dtype)
        return self._in_dtypes[dtype]

    def _narrowed(self, dtype: torch.dtype) -> Instance:
        if self._needs_verification:  # here, because a comparison in fewer digits would tell less
            self._needs_verification = False
            self.verify()
        other = self._rounded(lambda value: _rounded(value, dtype))
        other._first_outputs = None  # rounding may change the outputs by more than its check allows
        return other

    def _rounded(self, cast: Callable[[Any], Any]) -> Instance:
        """A copy with other parameters, buffers and inputs."""
        other = self._copy()
        other._can_be_shadowed = None  # that of another dtype
        other.inputs = mapped(self.inputs, cast)
        other.parameters = {name: cast(p) for name, p in self.parameters.items()}
        other._buffers = {name: cast(b) for name, b in self._buffers.items()}
        return other

    def outputs(self) -> Tensor:
        """The network's outputs, (N, ..., C), without a graph."""
        if self._recorded is not None:
            return self._recorded.outputs.detach()
        shadows = self._shadows()
        with torch.no_grad(), FrozenConvolutions():
            outputs = self._forward(shadows=shadows)
        self._refuse_another_model(outputs)
        return outputs if shadows is None else shadows.take(outputs)

    def _shadows(self) -> Shadows | None:
        return Shadows() if self._is_shadowed else None

    def _refuse_another_model(self, outputs: Tensor) -> None:
        """Raise ValueError if a part of the model that is no tensor has changed: an attribute, or a module."""
        if self._first_outputs is not None:
            refuse_other_model(outputs, self._first_outputs)

    def tape(self, names: Collection[str] | None = None) -> Tape:
        """A recorded forward pass with frozen parameters, for gradients at the outputs of the layers ``names``."""
        if self._needs_verification:
            self._needs_verification = False
            self.verify()
        chosen = [layer for layer in self.layers if names is None or layer.name in names]
        if self._recorded is not None and len(chosen) == len(self.layers):
            self._reach(self._recorded)
            return self._recorded
        tape = self._replayed(chosen)
        if not tape.fits:
            self.survey_anew()
            tape = self._replayed(chosen)
        if not tape.fits:
            raise ValueError("the model uses its parameters in another way in each pass over this batch")
        self._reach(tape)
        return self._with_alone(tape)

    def _replayed(self, chosen: Sequence[Layer]) -> Tape:
        """A pass over the batch, recorded for these blocks."""
        held = {name for layer in chosen for name in layer.parameters}
        followed = self._trainable if self.plan.is_numbered else held
        leaves = self._leaves([name for name in self.parameters if name in followed])
        tracer = Tracer(self._followed(leaves, self.plan.uncut), self.samples, self.plan.vetoed, self.plan.cloned)
        shadows = self._shadows()
        with torch.enable_grad(), FrozenConvolutions():
            outputs = self._forward(tracer, as_parameters(leaves, self.parameters), shadows)
        self._refuse_another_model(outputs)
        tape = self._tape(tracer, outputs, {name: leaves[name] for name in leaves if name in held}, chosen)
        return tape if shadows is None else replace(tape, shadow=shadows.take(outputs))

    def _with_alone(self, tape: Tape) -> Tape:
        """The tape with every sample's own pass, if plain autograd follows parameters and such passes are right."""
        generic = [name for name in self.plan.generic if name in tape.roles]
        if not generic or self.coupled or not self._passes_alone:
            return tape
        return replace(tape, alone=self._alone(generic, tape.outputs))

    def _alone(self, names: Sequence[str], outputs: Tensor) -> list[tuple[Tensor, dict[str, Tensor]]] | None:
        """The graph of every sample alone; None if the model computes other outputs on a sample alone."""
        try:
            with warnings.catch_warnings(action="ignore"):
                graphs = [self._take(slice(n, n + 1)).graph(names) for n in range(self.samples)]
            joined = torch.cat([graph[0].detach() for graph in graphs])
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return None
        return graphs if joined.shape == outputs.shape and agree(joined, outputs.detach()) else None

    def _reach(self, tape: Tape) -> None:
        self.reached |= {
            layer.name
            for layer in self.layers
            if layer.name in self.plan.formed or any(role.name in tape.used for role in layer.roles or (layer,))
        }

    def cotangents(self, outputs: Tensor, fisher_type: str, mc_samples: int = 1, seed: int = 0) -> Iterator[Tensor]:
        """The cotangents of a Fisher type, each (N, ..., C); see ``curvbench.instance.likelihood.cotangents``."""
        made = cotangents(self.likelihood, widened(outputs.detach()), self.targets, fisher_type, mc_samples, seed)
        return (cotangent.to(outputs.dtype) for cotangent in made)

    def slopes(self, tape: Tape, fisher_type: str, mc_samples: int = 1, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        """``pull`` for every cotangent of a Fisher type."""
        return self.pull(tape, self.cotangents(tape.values, fisher_type, mc_samples, seed))

    def pull(self, tape: Tape, cotangents: Iterator[Tensor]) -> Iterator[dict[str, Tensor]]:
        """Per cotangent the output gradients (N, G, M, S) of the recorded roles; the last pass frees the graph."""
        current = next(cotangents, None)
        while current is not None:
            following = next(cotangents, None)
            pulled = tape.pull(current.to(tape.outputs.dtype), keep=following is not None)
            yield {name: geometry.slopes(role, pulled[name]) for name, role in tape.roles.items()}
            current = following

    def columns_per_sample(self, fisher_type: str, mc_samples: int = 1) -> int:
        """The number of score columns per sample in a Fisher type, R."""
        if fisher_type == "mc":
            return mc_samples
        rank = self.likelihood.rank(self.classes) if fisher_type == "type-2" else 1
        return rank * self.terms_per_sample

    @network_pass()
    def gradients(self, objective: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Gradients of the mean loss, or of another function of the outputs, for every trainable parameter."""
        if objective is None and self._given_gradients is not None:
            return dict(self._given_gradients)
        outputs, trained = self.graph(sorted(self._trainable))
        with torch.enable_grad():
            outputs = widened(outputs)
            loss = objective(outputs) if objective else self.likelihood.loss(outputs, self.targets)
        keeps_graph = self._recorded is not None
        gradients = torch.autograd.grad(
            loss, list(trained.values()), retain_graph=keeps_graph, allow_unused=True, materialize_grads=True
        )
        return {name: densified(gradient) for name, gradient in zip(trained, gradients, strict=True)}

    def graph(self, names: Iterable[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs (N, ..., C) of one forward pass, and the named parameters as leaves of its graph."""
        if self._recorded is not None:
            return self._recorded.outputs, {name: self.model.get_parameter(name) for name in names}
        leaves = {name: self._own_parameter(name) for name in names}
        with torch.enable_grad():
            return self._forward(parameters=leaves), leaves

    def _own_parameter(self, name: str) -> Tensor:
        """The model's own parameter, so that uses under another name count, or a leaf with the measured numbers."""
        own, measured = self.model.get_parameter(name), self.parameters[name]
        is_measured = own.dtype == measured.dtype and own.data_ptr() == measured.data_ptr()
        is_free = is_measured and own.requires_grad and not own._backward_hooks
        return own if is_free else measured.detach().requires_grad_()

    @property
    def uncovered(self) -> list[str]:
        """Names of the trainable parameters that no covered layer holds."""
        covered = {name for layer in self.layers for name in layer.parameters}
        return sorted(self._trainable - covered)

    def gradient(self) -> Tensor:
        """The gradient of the mean loss as a parameter vector (P,).

        The gradient is computed once, because a training step has computed it before it takes statistics. A caller that
        writes to the vector does not change the vector that the next caller gets.
        """
        self.refuse_changed()
        if self._gradient is None:
            packed = self.pack(self.gradients())
            self._gradient = packed, packed.clone()
        returned, untouched = self._gradient
        if not torch.equal(returned, untouched):
            self._gradient = untouched.clone(), untouched
        return self._gradient[0]

    @network_pass()
    def hessian_product(self, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss in the covered parameters times a vector, (P,) -> (P,).

        Raises:
            RuntimeError: torch's own, if an operation of the model cannot be differentiated twice.
        """
        directions = self.unpack(vector)
        leaves = {name: self.parameters[name].detach().requires_grad_() for name in directions}
        plain = self._copy()
        plain.inputs = mapped(self.inputs, lambda x: x.detach() if isinstance(x, Tensor) else x)
        # Only this kernel of attention can be differentiated twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            loss = self.likelihood.loss(plain._forward(parameters=leaves), self.targets)
            slopes = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            along = torch.stack([(s * d).sum() for s, d in zip(slopes, directions.values(), strict=True)]).sum()
        if along.requires_grad:
            # autograd.grad would pass over the nodes that refuse to be differentiated twice.
            along.backward()
        products = {n: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for n, leaf in leaves.items()}
        return self.pack(products)

    @network_pass()
    def fisher_product(self, vector: Tensor) -> Tensor:
        """The type-2 Fisher times a vector, (P,) -> (P,), by one forward-mode and one reverse-mode derivative.

        Both derivatives belong to the same forward pass, on dual numbers whose graph is recorded.

        Raises:
            RuntimeError: torch's own, if an operation of the model has no forward-mode derivative.
        """
        directions = self.unpack(vector)
        leaves = {name: self.parameters[name].detach().requires_grad_() for name in directions}
        # Only this kernel of attention has a forward-mode derivative.
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), forward_ad.dual_level():
            with warnings.catch_warnings():  # torch scripts its forward-mode derivatives when the first is taken
                warnings.filterwarnings("ignore", ".torch.jit.script. is", DeprecationWarning)
                duals = {name: forward_ad.make_dual(leaf, directions[name]) for name, leaf in leaves.items()}
            outputs, tangent = forward_ad.unpack_dual(self._forward(parameters=duals))
        with torch.no_grad():
            factor = self.likelihood.factor(outputs, self.targets) * self.likelihood.valid(self.targets)[..., None]
            cotangent = (factor * (factor * tangent).sum(-1, keepdim=True)).sum(0) / self.terms
        parameters = list(leaves.values())
        products = torch.autograd.grad(outputs, parameters, cotangent, allow_unused=True, materialize_grads=True)
        return self.pack(dict(zip(leaves, products, strict=True)))

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors, shaped like the parameters, as a parameter vector (P,), in float32 at least.

        An instance in float16 or bfloat16 gives a vector of its own dtype. Names of parameters that no layer covers are
        ignored.

        Raises:
            ValueError: a covered parameter is missing or has another shape.
        """
        vector = packed(self.layers, self.parameters, tensors)
        return vector.to(self.dtype) if self.dtype.itemsize < 4 else vector

    def unpack(self, vector: Tensor) -> dict[str, Tensor]:
        """A parameter vector (P,) as named tensors, shaped like the parameters.

        Raises:
            ValueError: the vector has another length.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"a parameter vector of this instance has shape ({self.size},), got {tuple(vector.shape)}")
        return unpacked(self.layers, self.parameters, vector)

    def refuse_changed(self) -> None:
        """Raise ValueError if parameters, buffers, inputs or targets have changed; the text names the tensor."""
        if self._original is not None:
            self._original.refuse_changed()

    @network_pass()
    def _forward(
        self,
        tracer: Tracer | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        shadows: Shadows | None = None,
    ) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise ValueError("inside torch.inference_mode() nothing can be differentiated: leave it first")
        if autocasts():
            raise ValueError("inside torch.autocast() statistics would lose digits: leave it first")
        self.refuse_changed()
        state = {**self.parameters, **(parameters or {}), **{name: b.clone() for name, b in self._buffers.items()}}
        args, kwargs = arguments(self.inputs)
        keeps = self._draws_random_numbers or self._states is not None
        before = RandomStates.now(self.device) if keeps else None
        mode = evaluation(self.model) if self._states is None else nullcontext()
        uncast = Uncast() if self._enters_autocast else nullcontext()
        followed = nullcontext() if tracer is None else tracer
        if tracer is not None:
            tracer.take_constants(value for value in state.values() if not value.requires_grad)
        with ExitStack() as stack:
            for context in (one_thread(), mode, uncompiled(), unfused_attention(), uncast, followed):
                stack.enter_context(context)
            if shadows is not None:  # other kernels of attention compute the softmax again in the backward pass
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                stack.enter_context(shadows)
            try:
                if self._states is not None:
                    self._states.restore(self.device)
                return self.arranged(called(self.model, state, args, kwargs))
            finally:
                if before is not None:
                    before.restore(self.device)


def _of_blocks(wrong: Mapping[str, str], instance: Instance) -> dict[str, str]:
    """What is wrong with blocks; a parameter that the first batch did not use has none."""
    return {name: reason for name, reason in wrong.items() if name not in instance.unused}


def _reasons(left_out: Mapping[str, str]) -> str:
    return "; ".join(f"{name!r}: {reason}" for name, reason in list(left_out.items())[:3]) or "the model has none"


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    """A real or complex tensor in another precision; any other value unchanged."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    return value.to(_COMPLEX.get(dtype, torch.complex64) if value.is_complex() else dtype)


def _numbers(parameter: Tensor) -> int:
    """The count of real numbers in a parameter; a complex entry counts twice."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)
