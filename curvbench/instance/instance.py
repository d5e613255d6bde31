"""An instance: a model, a batch and a loss, seen as layer inputs and output gradients. The model is never changed."""

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
from curvbench.instance.likelihood import cotangents, likelihood
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

    Covered are Linear, Conv1d and Conv2d layers that are called exactly once; other parameters count in
    ``coverage`` but are compared with nothing. BatchNorm must be in evaluation mode; dropout is off.

    The whole batch is verified once (see ``curvbench.instance.verification``). Afterwards model and batch must stay as
    they are: every use compares their contents with copies. Each call leaves parameters, buffers, modes and random
    states as they were, and waits for a call from another thread to end.

    Weights, buffers, inputs and targets in float16 or bfloat16 are copied into float32, in which the model then runs:
    what is measured is the Fisher at the rounded numbers. Autocast is off, in the model's own ``forward`` as well.

    Args:
        model: any module; inputs and outputs have the batch first, outputs (N, C) or (N, T, C) with classes last.
        inputs: what the model is called with: a tensor (N, ...), a tuple of arguments, or a mapping of keywords; a list
            is one argument. Tensors in lists and mappings inside count as well.
        targets: int64 class indices (N,) or (N, T) with -100 for ignored tokens, or for ``gaussian`` values
            shaped like the outputs.
        loss: ``cross_entropy`` or ``gaussian`` (1/2 |f - y|^2 summed over outputs, mean over terms).

    Raises:
        ValueError: with a one-line reason for everything whose Fisher this class cannot give exactly.

    Attributes:
        dtype: of passes, gradients and parameter vectors: that of the weights, float32 at least.
        layers: geometry of the covered layers in ``named_modules`` order.
        sizes: per layer what cost models need.
        samples: N.
        terms: number of valid loss terms.
        coverage: share of the trainable parameters that the layers hold.
        reached: names of the layers that recorded passes of this batch have gone through so far.
    """

    @full_precision()
    def __init__(self, model: nn.Module, inputs: Inputs, targets: Tensor, loss: str = "cross_entropy") -> None:
        self.likelihood = likelihood(loss)
        self.model, self.loss = model, loss
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
        self._draws = False
        self._gradient: tuple[Tensor, Tensor] | None = None
        self._recorded: Tape | None = None
        self._known: Mapping[str, Tensor] | None = None
        self._unverified = False
        self.reached: set[str] = set()
        self._computed: Tensor | None = None
        inspection = self._inspect()
        self.layers, self.sizes, self._shapes = inspection.layers, inspection.sizes, inspection.shapes
        self.size = sum(layer.size for layer in self.layers)
        self.terms = int(self.likelihood.valid(self.targets).sum())
        self._take_properties(inspection)
        self.coverage = self.size / sum(_numbers(self.parameters[name]) for name in self._trainable)
        first = inspection.seen
        if self._draws:
            refuse_random_passes(self, first)
        refuse_coupled_passes(self, first)
        try:
            refuse_wrong_columns(self)
            refuse_wrong_tape(self)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(f"the model cannot be differentiated: {str(error).splitlines()[0]}") from error
        self._computed = first.outputs.detach().clone()
        self._double = self._run_in_float64()

    def _read_model(self) -> None:
        """Take the parameters and buffers of the model as they are now."""
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
            draws = self._draws or before.drawn_from(RandomStates.now(self.device))
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
        """Take over how the model behaves on samples of the inspected shape."""
        self.classes, self.terms_per_sample = inspection.classes, inspection.terms_per_sample
        self._cloned_inputs = inspection.cloned_inputs
        self._draws, self._enters_autocast = inspection.draws_random_numbers, inspection.enters_autocast

    def verify(self) -> None:
        """Compare the score columns with plain autograd again, after ``with_batch``: see ``refuse_wrong_columns``.

        Raises:
            ValueError: a layer has no per-sample scores in this batch, or its weight another use.
        """
        refuse_wrong_columns(self._copy())

    def seen(self) -> Seen:
        """What a forward pass shows: outputs and the inputs of the covered layers."""
        recorder = Recorder({layer.name: layer for layer in self.layers}, self._cloned_inputs)
        with torch.no_grad():
            outputs = self._forward(recorder.hooks())
        return Seen(outputs, recorder.inputs)

    def traced(self) -> tuple[Tape, dict[str, Tensor]]:
        """One forward pass recorded for gradients at every layer's output and, as leaves, in its parameters."""
        recorder = Recorder({layer.name: layer for layer in self.layers}, self._cloned_inputs, trace=True)
        names = [name for layer in self.layers for name in parameter_names(layer)]
        leaves = {name: self.parameters[name].detach().requires_grad_() for name in names}
        with torch.enable_grad():
            outputs = self._forward(recorder.hooks(), leaves)
        return recorder.tape(outputs, self._shapes), leaves

    def record(self, inputs: Inputs, frozen: bool = False) -> Tape:
        """The model's forward pass on other inputs, in the mode that it is in; its graph leads to the parameters.

        ``frozen``: not to those of the covered layers, so that a backward pass makes no gradients of their weights.
        """
        recorder = Recorder({layer.name: layer for layer in self.layers}, self._cloned_inputs, trace=True)
        args, kwargs = arguments(inputs)
        covered = [name for layer in self.layers for name in parameter_names(layer)] if frozen else []
        held = {name: self.model.get_parameter(name).detach() for name in covered}
        with one_thread(), hooked(self.model, recorder.hooks()):
            outputs = functional_call(self.model, held, args, kwargs)
        return recorder.tape(outputs, self._shapes, kept=True)

    def with_batch(
        self,
        inputs: Inputs,
        targets: Tensor,
        tape: Tape | None = None,
        known: Mapping[str, Tensor] | None = None,
        verify: bool = False,
    ) -> Instance:
        """The model as it is now with another batch; what is true of the model is not verified again.

        Args:
            inputs: as for the constructor; samples of another shape cost a forward pass.
            targets: as for the constructor.
            tape: what ``record`` gave for these inputs, where the model computes the same in both of its modes: it
                stands for every forward pass.
            known: gradients of the mean loss for every trainable parameter, which ``gradients`` then gives.
            verify: whether ``verify`` runs before the first per-sample score is read.
        """
        other = self._copy()
        other.inputs, other.targets, other.samples = _widened(inputs), widened(targets), _leading_size(inputs)
        other._read_model()
        other._original = other._computed = None  # of a batch that is gone after its step, no copies are kept
        other.terms = int(self.likelihood.valid(targets).sum())
        if _sample_shapes(inputs) != _sample_shapes(self.inputs):
            inspection = other._inspect()
            other.sizes, other._shapes = self.sizes | inspection.sizes, self._shapes | inspection.shapes
            other._take_properties(inspection)
        other._recorded, other._known, other._unverified, other.reached = tape, known, verify, set()
        return other

    def runs_in_float64(self) -> bool:
        """Whether the model runs with everything cast; one that makes float32 constants on its way may not."""
        return self._double

    def _run_in_float64(self) -> bool:
        """Forward and backward: a checkpointed part runs again in the backward pass, with the model's own weights."""
        try:
            with warnings.catch_warnings(action="ignore"):  # of one sample alone
                tape = self.part(slice(1)).to(torch.float64).tape()
                tape.pull(torch.ones_like(tape.outputs))
            return tape.outputs.dtype == torch.float64
        except (RuntimeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False

    def part(self, samples: slice) -> Instance:
        """Some of the samples. ``terms`` stays that of the whole batch: sums over parts add up."""
        return self._take(samples)

    def draw(self, count: int, seed: int) -> Instance:
        """The same model on ``count`` of the samples, in random order, none of them twice.

        Raises:
            ValueError: there are fewer samples, or no loss term in those that were drawn.
        """
        if not 1 <= count <= self.samples:
            raise ValueError(f"cannot draw {count} of {self.samples} samples: take between 1 and {self.samples}")
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(seed))
        drawn = self._take(order[:count].to(self.device))
        drawn.terms = int(self.likelihood.valid(drawn.targets).sum())
        if drawn.terms == 0:
            raise ValueError(f"{count} of {self.samples} samples were drawn without any loss term: draw more of them")
        return drawn

    def reordered(self, rows: Tensor, leave: Tensor | None = None) -> Instance:
        """The same batch with the samples ``rows`` (N,), of which some may stand there twice; one input may be left."""
        return self._take(rows, leave)

    def _take(self, rows: slice | Tensor, leave: Tensor | None = None) -> Instance:
        def cut(value: Any) -> Any:
            sized = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == self.samples
            return value[rows] if sized and value is not leave else value

        other = self._copy()
        other._unverified, other._computed = self._unverified, None
        other.inputs, other.targets = mapped(self.inputs, cut), self.targets[rows]
        other.samples = len(other.targets)
        return other

    def _copy(self) -> Instance:
        """One whose fields may be changed: it knows no gradient yet."""
        other = copy.copy(self)
        other._gradient = other._recorded = other._known = None
        other._unverified = False
        return other

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[next(iter(self._weight_names()))].dtype

    @property
    def runs_as_it_is(self) -> bool:
        """Whether its passes are the model's own: in the dtype of its weights, without leaving autocast."""
        return not self._enters_autocast and all(widened(p) is p for p in self.model.parameters())

    @property
    def device(self) -> torch.device:
        return self.targets.device

    def to(self, dtype: torch.dtype) -> Instance:
        """The same instance with parameters, buffers, inputs and real targets rounded to another floating dtype.

        What is complex becomes so in the precision of that dtype.
        """

        def cast(value: Any) -> Any:
            if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
                return value
            return widened(value.to(_COMPLEX.get(dtype, torch.complex64) if value.is_complex() else dtype))

        other = self._copy()
        other._unverified = self._unverified
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
        """What is no tensor of the model may have changed too: an attribute, a module that was exchanged."""
        if self._computed is not None:
            refuse_other_model(outputs, self._computed)

    def tape(self, names: Collection[str] | None = None) -> Tape:
        """One forward pass with frozen parameters, recorded for gradients at the outputs of some layers, or of all."""
        if self._unverified:
            self._unverified = False
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
        """Per cotangent, the output gradients (N, G, M, S) of the recorded layers; the last frees the tape's graph."""
        recorded = [layer for layer in self.layers if layer.name in tape.shapes]
        current = next(cotangents, None)
        while current is not None:
            following = next(cotangents, None)
            pulled = tape.pull(current, keep=following is not None)
            yield {layer.name: geometry.slopes(layer, pulled[layer.name]) for layer in recorded}
            current = following

    def columns_per_sample(self, fisher_type: str, mc_samples: int = 1) -> int:
        """Score columns that one sample has in a Fisher type, R."""
        if fisher_type == "mc":
            return mc_samples
        rank = self.likelihood.rank(self.classes) if fisher_type == "type-2" else 1
        return rank * self.terms_per_sample

    @network_pass()
    def gradients(self, objective: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Gradients of the mean loss, or of another function of the outputs, for every trainable parameter."""
        if objective is None and self._known is not None:
            return dict(self._known)
        outputs, trained = self.graph(sorted(self._trainable))
        with torch.enable_grad():
            loss = objective(outputs) if objective else self.likelihood.loss(outputs, self.targets)
        kept = self._recorded is not None
        found = torch.autograd.grad(
            loss, list(trained.values()), retain_graph=kept, allow_unused=True, materialize_grads=True
        )
        return dict(zip(trained, found, strict=True))

    def graph(self, names: Iterable[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """One forward pass with some parameters as leaves of its graph: the outputs (N, ..., C), the leaves."""
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

        Computed once, as a training step has it before it takes statistics; who writes to it does not change the next.
        """
        self.refuse_changed()
        if self._gradient is None:
            packed = self.pack(self.gradients())
            self._gradient = packed, packed.clone()
        handed, kept = self._gradient
        if not torch.equal(handed, kept):
            self._gradient = kept.clone(), kept
        return self._gradient[0]

    @network_pass()
    def hessian_product(self, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss in the covered parameters times a vector, (P,) -> (P,).

        Raises:
            RuntimeError: torch's own, where an operation of the model cannot be differentiated twice.
        """
        directions = self.unpack(vector)
        leaves = {name: self.parameters[name].detach().requires_grad_() for name in directions}
        plain = self._copy()
        plain.inputs = mapped(self.inputs, lambda x: x.detach() if isinstance(x, Tensor) else x)
        # Of the kernels of attention only this one can be differentiated twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            loss = self.likelihood.loss(plain._forward({}, leaves), self.targets)
            slopes = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            along = torch.stack([(s * d).sum() for s, d in zip(slopes, directions.values(), strict=True)]).sum()
        if along.requires_grad:
            # Not autograd.grad: it passes over the nodes that say that they cannot be differentiated twice.
            along.backward()
        found = {n: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for n, leaf in leaves.items()}
        return self.pack(found)

    def fisher_product(self, vector: Tensor) -> Tensor:
        """The type-2 Fisher times a vector, (P,) -> (P,), by one forward-mode and one reverse-mode derivative.

        Both are of the same forward pass, on dual numbers whose graph is recorded.

        Raises:
            RuntimeError: torch's own, where an operation of the model has no forward-mode derivative.
        """
        directions = self.unpack(vector)
        leaves = {name: self.parameters[name].detach().requires_grad_() for name in directions}
        # Of the kernels of attention only this one has a forward-mode derivative.
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(leaf, directions[name]) for name, leaf in leaves.items()}
            outputs, tangent = forward_ad.unpack_dual(self._forward({}, duals))
        with torch.no_grad():
            factor = self.likelihood.factor(outputs) * self.likelihood.valid(self.targets)[..., None]
            cotangent = (factor * (factor * tangent).sum(-1, keepdim=True)).sum(0) / self.terms
        held = list(leaves.values())
        found = torch.autograd.grad(outputs, held, cotangent, allow_unused=True, materialize_grads=True)
        return self.pack(dict(zip(leaves, found, strict=True)))

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors, shaped like the parameters, as a parameter vector (P,), in float32 at least.

        Other names are passed over.

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
            columns = (matrix[:, : layer.inputs - layer.bias], matrix[:, layer.inputs - 1 :])
            for name, part in zip(parameter_names(layer), columns, strict=False):
                tensors[name] = part.reshape(self.parameters[name].shape)
        return tensors

    def _weight_names(self) -> Iterator[str]:
        return (parameter_names(layer)[0] for layer in self.layers)

    def refuse_changed(self) -> None:
        """Raise ValueError where parameters, buffers, inputs or targets are not what they were; it names the tensor."""
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
        before = RandomStates.now(self.device) if self._draws else None
        uncast = Uncast() if self._enters_autocast else nullcontext()
        with one_thread(), evaluation(self.model), hooked(self.model, hooks), unfused_attention(), uncast:
            try:
                return functional_call(self.model, state, args, kwargs)
            finally:
                if before is not None:
                    before.restore(self.device)


class _Original(NamedTuple):
    """What an instance was made of, and its contents at that time."""

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
    """Real numbers in a parameter: a complex one has two."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)
