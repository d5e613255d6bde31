"""An instance: a model, a batch and a loss, seen as layer inputs and output gradients. The model is never changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvbench import layers as geometry
from curvbench.checks import (
    refuse_coupled_outputs,
    refuse_coupled_samples,
    refuse_layer,
    refuse_mixed_rows,
    refuse_not_finite,
    refuse_other_uses,
    refuse_output,
    refuse_tied,
    refuse_uncovered,
    refuse_untracked,
)
from curvbench.convolution import FrozenConvolutions
from curvbench.layers import parameter_names
from curvbench.likelihood import cotangents, likelihood
from curvbench.passes import network_pass
from curvbench.spec import Layer, LayerSize
from curvbench.tape import Hook, Recorder, Tape, evaluation, hooked

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]


class Instance:
    """A model with one batch and a loss, ready to be measured.

    Covered are Linear, Conv1d and Conv2d layers that are called exactly once; other parameters count in
    ``coverage`` but are compared with nothing. BatchNorm must be in evaluation mode; dropout is off.

    Args:
        model: any module; inputs and outputs have the batch first, outputs (N, C) or (N, T, C) with classes last.
        inputs: what the model is called with: a tensor (N, ...), a tuple of arguments, or a mapping of keywords.
        targets: int64 class indices (N,) or (N, T) with -100 for ignored tokens, or for ``gaussian`` values
            shaped like the outputs.
        loss: ``cross_entropy`` or ``gaussian`` (1/2 |f - y|^2 summed over outputs, mean over terms).

    Raises:
        ValueError: with a one-line reason for everything whose Fisher this class cannot give exactly.

    Attributes:
        layers: geometry of the covered layers in ``named_modules`` order.
        sizes: per layer what cost models need.
        samples: N.
        terms: number of valid loss terms.
        coverage: share of the trainable parameters that the layers hold.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, targets: Tensor, loss: str = "cross_entropy") -> None:
        self.likelihood = likelihood(loss)
        self.model, self.inputs, self.targets, self.loss = model, inputs, targets, loss
        self.samples = _leading_size(inputs)
        if self.samples == 0:
            raise ValueError("the batch is empty: give at least one sample")
        refuse_untracked(model)
        self.parameters = {name: p.detach() for name, p in model.named_parameters()}
        self._trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        self._buffers = {name: b.detach() for name, b in model.named_buffers()}
        self._versions = self._current_versions()
        refuse_coupled_samples(model)
        refuse_not_finite({**_named(inputs), **self.parameters, **self._buffers})
        self._cloned_inputs: frozenset[str] = frozenset()
        self._gradient: tuple[Tensor, list[int]] | None = None
        self._recorded: Tape | None = None
        self._known: Mapping[str, Tensor] | None = None
        self._inspect()
        self._verify()

    def _inspect(self) -> None:
        """Find the layers that one forward pass covers, and refuse what it shows to be out of reach."""
        candidates = {n: la for n, m in self.model.named_modules() if (la := geometry.describe(n, m)) is not None}
        seen = Recorder(candidates, frozenset())
        try:
            with torch.no_grad():
                outputs = self._forward(seen.hooks())
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(f"the model cannot be run on these inputs: {str(error).splitlines()[0]}") from error
        refuse_output(outputs, self.samples)
        self.likelihood.check(outputs, self.targets)
        called = {name: layer for name, layer in candidates.items() if seen.calls[name]}
        if not called:
            refuse_uncovered(self.model)
        for layer in called.values():
            refuse_layer(layer, seen, self.samples)
        refuse_tied(self.model, called)
        self._cloned_inputs = frozenset(seen.overwritten())
        start, found, sizes = 0, [], {}
        for name, layer in called.items():
            found.append(replace(layer, start=start))
            start += layer.size
            positions = seen.shapes[name][1:].numel() // (layer.groups * layer.outputs)
            kernel = 0 if layer.kind == "linear" else layer.kernel[0] * layer.kernel[1]
            sizes[name] = LayerSize(layer.groups, layer.outputs, layer.inputs, positions, kernel)
        self.layers: tuple[Layer, ...] = tuple(found)
        self.sizes: dict[str, LayerSize] = sizes
        self.size = start
        self.terms = int(self.likelihood.valid(self.targets).sum())
        self.classes = outputs.shape[-1]
        self.terms_per_sample = outputs[0].numel() // self.classes
        trained = sum(self.parameters[name].numel() for name in self._trainable)
        self.coverage = start / trained

    def _verify(self) -> None:
        """Check on the first samples what no module tells: that a sample's score is its own, and one product.

        In float64 where the model runs in it: in float32 a unit near zero may change sign with the batch size.
        """
        pair = self.part(slice(2))
        self._double = pair._run_in_float64()
        if self._double:
            pair = pair.to(torch.float64)
        single = pair.part(slice(1))
        refuse_coupled_outputs(single.outputs(), pair.outputs()[:1])
        together, alone = pair._scores(), single._scores()
        whole = pair.pack(
            pair.gradients(lambda out: (out * pair.likelihood.residual(out.detach(), pair.targets)).sum())
        )
        for layer in self.layers:
            refuse_mixed_rows(layer, together[layer.name][0], alone[layer.name][0])
            refuse_other_uses(layer, together[layer.name].sum(0).flatten(), whole[layer.slice])

    def record(self, inputs: Inputs, frozen: bool = False) -> Tape:
        """The model's forward pass on other inputs, in the mode that it is in; its graph leads to the parameters.

        ``frozen``: not to those of the covered layers, so that a backward pass makes no gradients of their weights.
        """
        recorder = Recorder({layer.name: layer for layer in self.layers}, self._cloned_inputs, trace=True)
        args, kwargs = arguments(inputs)
        covered = [name for layer in self.layers for name in parameter_names(layer)] if frozen else []
        held = {name: self.model.get_parameter(name).detach() for name in covered}
        with hooked(self.model, recorder.hooks()):
            outputs = functional_call(self.model, held, args, kwargs)
        return Tape(outputs, recorder.inputs, recorder.edges, recorder.shapes, recorder.sources, kept=True)

    def with_batch(
        self, inputs: Inputs, targets: Tensor, tape: Tape | None = None, known: Mapping[str, Tensor] | None = None
    ) -> Instance:
        """The model as it is now with another batch; what is true of the model is not verified again.

        Args:
            inputs: as for the constructor; samples of another shape cost a forward pass.
            targets: as for the constructor.
            tape: what ``record`` gave for these inputs, where the model computes the same in both of its modes: it
                stands for every forward pass.
            known: gradients of the mean loss for every trainable parameter, which ``gradients`` then gives.
        """
        other = self._copy()
        other.inputs, other.targets, other.samples = inputs, targets, _leading_size(inputs)
        other.parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        other._buffers = {name: b.detach() for name, b in self.model.named_buffers()}
        other._versions = other._current_versions()
        other.terms = int(self.likelihood.valid(targets).sum())
        if _sample_shapes(inputs) != _sample_shapes(self.inputs):
            other._inspect()
        other._recorded, other._known = tape, known
        return other

    def runs_in_float64(self) -> bool:
        """Whether the model runs with everything cast; one that makes float32 constants on its way may not."""
        return self._double

    def _run_in_float64(self) -> bool:
        try:
            return self.part(slice(1)).to(torch.float64).outputs().dtype == torch.float64
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False

    def _scores(self) -> dict[str, Tensor]:
        """Per layer the gradient of each sample's loss as input times output gradient, (N, G, M, D)."""
        tape = self.tape()
        pulled = tape.pull(self.likelihood.residual(tape.outputs.detach(), self.targets))
        return {
            layer.name: geometry.slopes(layer, pulled[layer.name]) @ geometry.patches(layer, tape.inputs[layer.name]).mT
            for layer in self.layers
        }

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

    def _take(self, rows: slice | Tensor) -> Instance:
        def cut(value: Any) -> Any:
            sized = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == self.samples
            return value[rows] if sized else value

        other = self._copy()
        other.inputs, other.targets = _map_inputs(self.inputs, cut), self.targets[rows]
        other.samples = len(other.targets)
        return other

    def _copy(self) -> Instance:
        """One whose fields may be changed: it knows no gradient yet."""
        other = copy.copy(self)
        other._gradient = other._recorded = other._known = None
        return other

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[next(iter(self._weight_names()))].dtype

    @property
    def device(self) -> torch.device:
        return self.targets.device

    def to(self, dtype: torch.dtype) -> Instance:
        """The same instance with parameters, buffers, inputs and real targets in another floating dtype."""

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        other = self._copy()
        other.inputs = _map_inputs(self.inputs, cast)
        other.targets = cast(self.targets)
        other.parameters = {name: cast(p) for name, p in self.parameters.items()}
        other._buffers = {name: cast(b) for name, b in self._buffers.items()}
        return other

    def outputs(self) -> Tensor:
        """The network's outputs, (N, ..., C), without a graph."""
        if self._recorded is not None:
            return self._recorded.outputs.detach()
        with torch.no_grad(), FrozenConvolutions():
            return self._forward({})

    def tape(self, names: Collection[str] | None = None) -> Tape:
        """One forward pass with frozen parameters, recorded for gradients at the outputs of some layers, or of all."""
        chosen = {layer.name: layer for layer in self.layers if names is None or layer.name in names}
        if self._recorded is not None and len(chosen) == len(self.layers):
            return self._recorded
        recorder = Recorder(chosen, self._cloned_inputs, trace=True)
        with torch.enable_grad(), FrozenConvolutions():
            outputs = self._forward(recorder.hooks())
        return Tape(outputs, recorder.inputs, recorder.edges, recorder.shapes, recorder.sources)

    def cotangents(self, outputs: Tensor, fisher_type: str, mc_samples: int = 1, seed: int = 0) -> Iterator[Tensor]:
        """The cotangents of a Fisher type, each (N, ..., C); see ``curvbench.likelihood.cotangents``."""
        return cotangents(self.likelihood, outputs.detach(), self.targets, fisher_type, mc_samples, seed)

    def slopes(self, tape: Tape, fisher_type: str, mc_samples: int = 1, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        """``pull`` for every cotangent of a Fisher type."""
        return self.pull(tape, self.cotangents(tape.outputs, fisher_type, mc_samples, seed))

    def pull(self, tape: Tape, cotangents: Iterator[Tensor]) -> Iterator[dict[str, Tensor]]:
        """Per cotangent, the output gradients (N, G, M, S) of the recorded layers; the last frees the tape's graph."""
        recorded = [layer for layer in self.layers if layer.name in tape.edges]
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
        factors = len(self.likelihood.factor(torch.zeros(1, self.classes))) if fisher_type == "type-2" else 1
        return factors * self.terms_per_sample

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

        Computed once, as a training step has it before it takes statistics; anew where it or the data were written to.
        """
        self._refuse_changed()
        read = [value for value in (*_values(self.inputs), self.targets) if isinstance(value, Tensor)]
        kept, versions = self._gradient or (None, None)
        if kept is None or versions != _versions([*read, kept]):
            kept = self.pack(self.gradients())
            self._gradient = kept, _versions([*read, kept])
        return kept

    @network_pass()
    def hessian_product(self, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss in the covered parameters times a vector, (P,) -> (P,).

        Raises:
            RuntimeError: torch's own, where an operation of the model cannot be differentiated twice.
        """
        directions = self.unpack(vector)
        leaves = {name: self.parameters[name].detach().requires_grad_() for name in directions}
        plain = self._copy()
        plain.inputs = _map_inputs(self.inputs, lambda x: x.detach() if isinstance(x, Tensor) else x)
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
        """Named tensors, shaped like the parameters, as a parameter vector (P,); other names are passed over.

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

    def _current_versions(self) -> list[int]:
        return _versions([*self.model.parameters(), *self.model.buffers()])

    def _refuse_changed(self) -> None:
        if self._current_versions() != self._versions:
            raise ValueError("the model has changed since this Instance was made: make a new one")

    @network_pass()
    def _forward(self, hooks: Mapping[str, Hook], parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise ValueError("inside torch.inference_mode() nothing can be differentiated: leave it first")
        self._refuse_changed()
        state = {**self.parameters, **(parameters or {}), **{name: b.clone() for name, b in self._buffers.items()}}
        args, kwargs = arguments(self.inputs)
        with evaluation(self.model), hooked(self.model, hooks):
            return functional_call(self.model, state, args, kwargs)


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    """How often each has been written to."""
    return [tensor._version for tensor in tensors]


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with: positional arguments and keywords."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return inputs if isinstance(inputs, tuple) else (inputs,), {}


def _sample_shapes(inputs: Inputs) -> list[torch.Size]:
    """The shapes of one sample's tensors."""
    return [value.shape[1:] for value in _values(inputs) if isinstance(value, Tensor)]


def _fetch(tensors: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    if name not in tensors or tensors[name].shape != shape:
        came = tuple(tensors[name].shape) if name in tensors else "nothing"
        raise ValueError(f"pack needs {name!r} of shape {tuple(shape)}, got {came}")
    return tensors[name]


def _values(inputs: Inputs) -> list[Any]:
    return [inputs] if isinstance(inputs, Tensor) else list(inputs.values() if isinstance(inputs, Mapping) else inputs)


def _named(inputs: Inputs) -> dict[str, Any]:
    return {f"input {i}": value for i, value in enumerate(_values(inputs))}


def _map_inputs(inputs: Inputs, act: Callable[[Any], Any]) -> Inputs:
    if isinstance(inputs, Tensor):
        return act(inputs)
    if isinstance(inputs, Mapping):
        return {key: act(value) for key, value in inputs.items()}
    return tuple(act(value) for value in inputs)


def _leading_size(inputs: Inputs) -> int:
    tensors = [value for value in _values(inputs) if isinstance(value, Tensor) and value.ndim]
    if not tensors:
        raise ValueError("inputs must hold a tensor whose first dimension is the batch")
    return tensors[0].shape[0]
