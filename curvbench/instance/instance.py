"""An instance: a model, a batch and a loss, seen as layer inputs and output gradients. The model is not changed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvbench.instance import layers as geometry
from curvbench.instance.contents import Contents, RandomStates, mapped, one_thread
from curvbench.instance.convolution import FrozenConvolutions
from curvbench.instance.inputs import (
    Inputs,
    _fetch,
    _leading_size,
    _named,
    _sample_shapes,
    _widened,
    arguments,
    batch_contents,
)
from curvbench.instance.inspection import Inspection
from curvbench.instance.layers import parameter_names
from curvbench.instance.likelihood import Loss, cotangents, likelihood
from curvbench.instance.outputs import Chooser, Layout, chosen
from curvbench.instance.passes import Uncast, autocasts, full_precision, network_pass
from curvbench.instance.refusals import (
    refuse_coupled_samples,
    refuse_layer,
    refuse_not_finite,
    refuse_other_model,
    refuse_output,
    refuse_tied,
    refuse_uncovered,
    refuse_untracked,
    refuse_written,
)
from curvbench.instance.tape import Hook, Recorder, Tape, evaluation, hooked, unfused_attention
from curvbench.instance.verification import (
    Seen,
    refuse_coupled_passes,
    refuse_random_passes,
    refuse_wrong_columns,
    refuse_wrong_tape,
)
from curvbench.numerics import widened
from curvbench.spec.geometry import Layer

_COMPLEX = {torch.float16: torch.complex32, torch.float64: torch.complex128}


class Instance:
    """A model with one batch and a loss, ready to be measured.

    An instance covers Linear, Conv1d and Conv2d layers that the model calls exactly once; other parameters count in
    ``coverage`` but in no comparison. BatchNorm must be in evaluation mode; dropout is off.

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

    Raises:
        ValueError: this class cannot give the exact Fisher; the text is a one-line reason.

    Attributes:
        dtype: dtype of passes, gradients and parameter vectors: the dtype of the weights, float32 at least.
        layers: geometry of the covered layers in ``named_modules`` order.
        sizes: per layer the numbers that cost models need.
        samples: N.
        terms: number of valid loss terms.
        returns_outputs: whether the model returns the outputs (N, C) or (N, T, C) themselves.
        coverage: share of the trainable parameters that the covered layers hold.
        reached: names of the layers that recorded passes of this batch have called so far.
    """

    @full_precision()
    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        targets: Tensor,
        loss: Loss = "cross_entropy",
        outputs: Chooser | None = None,
    ) -> None:
        self._for_any_batch = self.likelihood = likelihood(loss)
        self.model, self.loss, self._choose = model, self.likelihood.name, outputs
        self._layout: Layout | None = None
        self.returns_outputs = True
        self.inputs, self.targets = _widened(inputs), widened(targets)
        self.samples = _leading_size(inputs)
        if self.samples == 0:
            raise ValueError("the batch is empty: give at least one sample")
        refuse_untracked(model)
        self._trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        self._read_model()
        refuse_coupled_samples(model)
        refuse_not_finite(self.parameters, {**_named(inputs), **self._buffers})
        self._original: _Original | None = _Original.of(model, inputs, targets)
        self._enters_autocast = False
        self._cloned_inputs: frozenset[str] = frozenset()
        self._draws_random_numbers = False
        self._gradient: tuple[Tensor, Tensor] | None = None
        self._recorded: Tape | None = None
        self._given_gradients: Mapping[str, Tensor] | None = None
        self._needs_verification = False
        self.reached: set[str] = set()
        self._first_outputs: Tensor | None = None
        inspection = self._inspect()
        self.layers, self.sizes, self._shapes = inspection.layers, inspection.sizes, inspection.shapes
        self.size = sum(layer.size for layer in self.layers)
        self._take_terms()
        self._take_properties(inspection)
        self.coverage = self.size / sum(_numbers(self.parameters[name]) for name in self._trainable)
        first = inspection.seen
        if self._draws_random_numbers:
            refuse_random_passes(self, first)
        refuse_coupled_passes(self, first)
        self._refuse_wrong_scores()
        self._first_outputs = first.outputs.detach().clone()
        self._runs_in_float64 = self._try_float64()

    def _take_terms(self) -> None:
        """Count the loss terms of the targets, and take the weights that they have in the loss."""
        self.terms = int(self.likelihood.valid(self.targets).sum())
        self.likelihood = self._for_any_batch.for_batch(self.targets)

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

    def _refuse_wrong_scores(self) -> None:
        """Raise ValueError if per-sample scores differ from plain autograd, or if a derivative does not exist."""
        try:
            refuse_wrong_columns(self)
            refuse_wrong_tape(self)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(f"the model cannot be differentiated: {str(error).splitlines()[0]}") from error

    def _read_model(self) -> None:
        """Take the present parameters and buffers of the model."""
        self.parameters = {name: widened(p.detach()) for name, p in self.model.named_parameters()}
        self._buffers = {name: widened(b.detach()) for name, b in self.model.named_buffers()}

    def _inspect(self) -> Inspection:
        """One forward pass that shows the covered layers; a model without an exact per-sample Fisher is refused."""
        candidates = {n: la for n, m in self.model.named_modules() if (la := geometry.describe(n, m)) is not None}
        recorder, uncast = Recorder(candidates, frozenset()), Uncast()
        copies = {name: p.clone() for name, p in self.parameters.items()}  # the pass may write to a copy
        before = RandomStates.now(self.device)
        try:
            with torch.no_grad(), uncast:
                outputs = self._forward(recorder.hooks(), copies)
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
        covered = self._covered(candidates, recorder)
        return Inspection.of(covered, recorder, outputs, draws, uncast.met)

    def _covered(self, candidates: Mapping[str, Layer], recorder: Recorder) -> dict[str, Layer]:
        """The candidates that the recorded pass called, each checked."""
        called = {name: layer for name, layer in candidates.items() if recorder.calls[name]}
        if not called:
            refuse_uncovered(self.model)
        for layer in called.values():
            refuse_layer(layer, recorder, self.samples)
        refuse_tied(self.model, called)
        return called

    def _take_properties(self, inspection: Inspection) -> None:
        """Take over the properties of the model for samples of the inspected shape."""
        self.classes, self.terms_per_sample = inspection.classes, inspection.terms_per_sample
        self._cloned_inputs = inspection.cloned_inputs
        self._draws_random_numbers = inspection.draws_random_numbers
        self._enters_autocast = inspection.enters_autocast

    def verify(self) -> None:
        """Compare the score columns with plain autograd again, after ``with_batch``: see ``refuse_wrong_columns``.

        Raises:
            ValueError: a layer has no per-sample scores in this batch, or its weight another use.
        """
        refuse_wrong_columns(self._copy())

    def seen(self) -> Seen:
        """The outputs and the covered layers' inputs of one forward pass."""
        recorder = Recorder({layer.name: layer for layer in self.layers}, self._cloned_inputs)
        with torch.no_grad():
            outputs = self._forward(recorder.hooks())
        return Seen(outputs, recorder.inputs)

    def traced(self) -> tuple[Tape, dict[str, Tensor]]:
        """A forward pass recorded for gradients at every layer's output, and the layers' parameters as its leaves."""
        recorder = Recorder({layer.name: layer for layer in self.layers}, self._cloned_inputs, trace=True)
        names = [name for layer in self.layers for name in parameter_names(layer)]
        leaves = {name: self.parameters[name].detach().requires_grad_() for name in names}
        with torch.enable_grad():
            outputs = self._forward(recorder.hooks(), leaves)
        return recorder.tape(outputs, self._shapes), leaves

    def record(self, inputs: Inputs, frozen: bool = False) -> Tape:
        """The model's forward pass on other inputs, in its present mode; the graph leads to the parameters.

        ``frozen``: the graph does not lead to the covered layers' parameters, so that a backward pass makes no
        gradients of their weights.
        """
        recorder = Recorder({layer.name: layer for layer in self.layers}, self._cloned_inputs, trace=True)
        args, kwargs = arguments(inputs)
        covered = [name for layer in self.layers for name in parameter_names(layer)] if frozen else []
        detached = {name: self.model.get_parameter(name).detach() for name in covered}
        with one_thread(), hooked(self.model, recorder.hooks()):
            outputs = self.arranged(functional_call(self.model, detached, args, kwargs))
        return recorder.tape(outputs, self._shapes, keeps_graph=True)

    def with_batch(
        self,
        inputs: Inputs,
        targets: Tensor,
        tape: Tape | None = None,
        gradients: Mapping[str, Tensor] | None = None,
        verify: bool = False,
    ) -> Instance:
        """The present model with another batch; properties of the model are not verified again.

        Args:
            inputs: as for the constructor; samples of another shape cost a forward pass.
            targets: as for the constructor.
            tape: the tape that ``record`` gave for these inputs; it replaces every forward pass. The model must compute
                the same in training and in evaluation mode. None means that forward passes run.
            gradients: gradients of the mean loss for every trainable parameter, which the method ``gradients`` then
                returns. None means that they are computed.
            verify: whether ``verify`` runs before the first per-sample score is read.
        """
        other = self._copy()
        other.inputs, other.samples = _widened(inputs), _leading_size(inputs)
        other.targets = self.arranged_targets(widened(targets))
        other._read_model()
        other._original = other._first_outputs = None  # no copies, because the batch is used in one step alone
        other._take_terms()
        if _sample_shapes(inputs) != _sample_shapes(self.inputs):
            inspection = other._inspect()
            other.sizes, other._shapes = self.sizes | inspection.sizes, self._shapes | inspection.shapes
            other._take_properties(inspection)
        other._recorded, other._given_gradients, other._needs_verification = tape, gradients, verify
        other.reached = set()
        return other

    def runs_in_float64(self) -> bool:
        """Whether the model runs in float64; a model that creates float32 constants in its ``forward`` may not."""
        return self._runs_in_float64

    def _try_float64(self) -> bool:
        """Whether a forward and a backward pass of one sample run in float64.

        The backward pass counts, because a checkpointed part runs there again with the model's own weights.
        """
        try:
            with warnings.catch_warnings(action="ignore"):  # torch warns of a batch of one sample
                tape = self.part(slice(1)).to(torch.float64).tape()
                tape.pull(torch.ones_like(tape.outputs))
            return tape.outputs.dtype == torch.float64
        except (RuntimeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False

    def part(self, samples: slice) -> Instance:
        """The instance with some of the samples; ``terms`` stays the whole batch's, so that sums over parts add up."""
        return self._take(samples)

    def draw(self, count: int, seed: int) -> Instance:
        """The same model on ``count`` different samples in random order.

        Raises:
            ValueError: there are fewer samples, or the drawn samples have no loss term.
        """
        if not 1 <= count <= self.samples:
            raise ValueError(f"cannot draw {count} of {self.samples} samples: take between 1 and {self.samples}")
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(seed))
        drawn = self._take(order[:count].to(self.device))
        drawn._take_terms()
        if drawn.terms == 0:
            raise ValueError(f"{count} of {self.samples} samples were drawn without any loss term: draw more of them")
        return drawn

    def reordered(self, rows: Tensor, leave: Tensor | None = None) -> Instance:
        """The same batch with the samples ``rows`` (N,), which may repeat a sample; the input ``leave`` stays."""
        return self._take(rows, leave)

    def _take(self, rows: slice | Tensor, leave: Tensor | None = None) -> Instance:
        def cut(value: Any) -> Any:
            sized = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == self.samples
            return value[rows] if sized and value is not leave else value

        other = self._copy()
        other._needs_verification, other._first_outputs = self._needs_verification, None
        other.inputs, other.targets = mapped(self.inputs, cut), self.targets[rows]
        other.samples = len(other.targets)
        return other

    def _copy(self) -> Instance:
        """A copy whose fields may be changed, without gradients and recorded passes."""
        other = copy.copy(self)
        other._gradient = other._recorded = other._given_gradients = None
        other._needs_verification = False
        return other

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[parameter_names(self.layers[0])[0]].dtype

    @property
    def runs_as_it_is(self) -> bool:
        """Whether the passes are the model's own: in the dtype of its weights, and without autocast to switch off."""
        return not self._enters_autocast and all(widened(p) is p for p in self.model.parameters())

    @property
    def device(self) -> torch.device:
        return self.targets.device

    def to(self, dtype: torch.dtype) -> Instance:
        """The same instance with parameters, buffers, inputs and real targets rounded to another floating dtype.

        Complex tensors are rounded to the complex dtype of the same precision.
        """

        def cast(value: Any) -> Any:
            if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
                return value
            return widened(value.to(_COMPLEX.get(dtype, torch.complex64) if value.is_complex() else dtype))

        other = self._copy()
        other._needs_verification = self._needs_verification
        other.inputs = mapped(self.inputs, cast)
        other.targets = cast(self.targets)
        other.parameters = {name: cast(p) for name, p in self.parameters.items()}
        other._buffers = {name: cast(b) for name, b in self._buffers.items()}
        return other

    def outputs(self) -> Tensor:
        """The network's outputs, (N, ..., C), without a graph."""
        if self._recorded is not None:
            return self._recorded.outputs.detach()
        with torch.no_grad(), FrozenConvolutions():
            outputs = self._forward({})
        self._refuse_another_model(outputs)
        return outputs

    def _refuse_another_model(self, outputs: Tensor) -> None:
        """Raise ValueError if a part of the model that is no tensor has changed: an attribute, or a module."""
        if self._first_outputs is not None:
            refuse_other_model(outputs, self._first_outputs)

    def tape(self, names: Collection[str] | None = None) -> Tape:
        """A recorded forward pass with frozen parameters, for gradients at the outputs of the layers ``names``."""
        if self._needs_verification:
            self._needs_verification = False
            self.verify()
        chosen = {layer.name: layer for layer in self.layers if names is None or layer.name in names}
        if self._recorded is not None and len(chosen) == len(self.layers):
            self.reached |= self._recorded.edges.keys()
            return self._recorded
        recorder = Recorder(chosen, self._cloned_inputs, trace=True)
        with torch.enable_grad(), FrozenConvolutions():
            outputs = self._forward(recorder.hooks())
        self._refuse_another_model(outputs)
        self.reached |= recorder.edges.keys()
        return recorder.tape(outputs, self._shapes)

    def cotangents(self, outputs: Tensor, fisher_type: str, mc_samples: int = 1, seed: int = 0) -> Iterator[Tensor]:
        """The cotangents of a Fisher type, each (N, ..., C); see ``curvbench.instance.likelihood.cotangents``."""
        return cotangents(self.likelihood, outputs.detach(), self.targets, fisher_type, mc_samples, seed)

    def slopes(self, tape: Tape, fisher_type: str, mc_samples: int = 1, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        """``pull`` for every cotangent of a Fisher type."""
        return self.pull(tape, self.cotangents(tape.outputs, fisher_type, mc_samples, seed))

    def pull(self, tape: Tape, cotangents: Iterator[Tensor]) -> Iterator[dict[str, Tensor]]:
        """Per cotangent the output gradients (N, G, M, S) of the recorded layers; the last pass frees the graph."""
        recorded = [layer for layer in self.layers if layer.name in tape.shapes]
        current = next(cotangents, None)
        while current is not None:
            following = next(cotangents, None)
            pulled = tape.pull(current, keep=following is not None)
            yield {layer.name: geometry.slopes(layer, pulled[layer.name]) for layer in recorded}
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
            loss = objective(outputs) if objective else self.likelihood.loss(outputs, self.targets)
        keeps_graph = self._recorded is not None
        gradients = torch.autograd.grad(
            loss, list(trained.values()), retain_graph=keeps_graph, allow_unused=True, materialize_grads=True
        )
        return dict(zip(trained, gradients, strict=True))

    def graph(self, names: Iterable[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs (N, ..., C) of one forward pass, and the named parameters as leaves of its graph."""
        if self._recorded is not None:
            return self._recorded.outputs, {name: self.model.get_parameter(name) for name in names}
        leaves = {name: self.parameters[name].detach().requires_grad_() for name in names}
        with torch.enable_grad():
            return self._forward({}, leaves), leaves

    @property
    def uncovered(self) -> list[str]:
        """Names of the trainable parameters that no covered layer holds."""
        covered = {name for layer in self.layers for name in parameter_names(layer)}
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
            loss = self.likelihood.loss(plain._forward({}, leaves), self.targets)
            slopes = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            along = torch.stack([(s * d).sum() for s, d in zip(slopes, directions.values(), strict=True)]).sum()
        if along.requires_grad:
            # autograd.grad would pass over the nodes that refuse to be differentiated twice.
            along.backward()
        products = {n: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for n, leaf in leaves.items()}
        return self.pack(products)

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
            duals = {name: forward_ad.make_dual(leaf, directions[name]) for name, leaf in leaves.items()}
            outputs, tangent = forward_ad.unpack_dual(self._forward({}, duals))
        with torch.no_grad():
            factor = self.likelihood.factor(outputs, self.targets) * self.likelihood.valid(self.targets)[..., None]
            cotangent = (factor * (factor * tangent).sum(-1, keepdim=True)).sum(0) / self.terms
        parameters = list(leaves.values())
        products = torch.autograd.grad(outputs, parameters, cotangent, allow_unused=True, materialize_grads=True)
        return self.pack(dict(zip(leaves, products, strict=True)))

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors, shaped like the parameters, as a parameter vector (P,), in float32 at least.

        Names of parameters that no layer covers are ignored.

        Raises:
            ValueError: a covered parameter is missing or has another shape.
        """
        parts = []
        for layer in self.layers:
            rows = layer.groups * layer.outputs
            pieces = [
                _fetch(tensors, name, self.parameters[name].shape).reshape(rows, -1) for name in parameter_names(layer)
            ]
            parts.append(torch.cat(pieces, dim=1).flatten())
        return torch.cat(parts)

    def unpack(self, vector: Tensor) -> dict[str, Tensor]:
        """A parameter vector (P,) as named tensors, shaped like the parameters.

        Raises:
            ValueError: the vector has another length.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"a parameter vector of this instance has shape ({self.size},), got {tuple(vector.shape)}")
        tensors = {}
        for layer in self.layers:
            matrix = vector[layer.slice].reshape(layer.groups * layer.outputs, layer.inputs)
            weight, bias = matrix[:, : layer.inputs - layer.bias], matrix[:, layer.inputs - 1 :]
            for name, part in zip(parameter_names(layer), (weight, bias), strict=False):
                tensors[name] = part.reshape(self.parameters[name].shape)
        return tensors

    def refuse_changed(self) -> None:
        """Raise ValueError if parameters, buffers, inputs or targets have changed; the text names the tensor."""
        if self._original is not None:
            self._original.refuse_changed()

    @network_pass()
    def _forward(self, hooks: Mapping[str, Hook], parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise ValueError("inside torch.inference_mode() nothing can be differentiated: leave it first")
        if autocasts():
            raise ValueError("inside torch.autocast() statistics would lose digits: leave it first")
        self.refuse_changed()
        state = {**self.parameters, **(parameters or {}), **{name: b.clone() for name, b in self._buffers.items()}}
        args, kwargs = arguments(self.inputs)
        before = RandomStates.now(self.device) if self._draws_random_numbers else None
        uncast = Uncast() if self._enters_autocast else nullcontext()
        with one_thread(), evaluation(self.model), hooked(self.model, hooks), unfused_attention(), uncast:
            try:
                return self.arranged(functional_call(self.model, state, args, kwargs))
            finally:
                if before is not None:
                    before.restore(self.device)


class _Original(NamedTuple):
    """The model and the batch that an instance was made of, and their contents at that time."""

    model: nn.Module
    inputs: Inputs
    targets: Tensor
    contents: Contents

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, targets: Tensor) -> _Original:
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


def _numbers(parameter: Tensor) -> int:
    """The count of real numbers in a parameter; a complex entry counts twice."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)
