"""Other libraries' curvature as probes: curvlinops and NNGeometry through the door that is open to any user.

Their matrices are converted to the operator algebra and to the mean Fisher; their code does the work of every phase.
Their factors come input first, ``A (x) B`` in column-stacking order; here ``B (x) A`` is row-major. No matrix changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from curvbench import FisherProbe, Instance
from curvbench.instance.tape import evaluation
from curvbench.operators import BlockDiagonal, Dense, Kronecker, RotatedDiagonal
from curvbench.spec import Layer

Bias = Literal["joint", "separate"]
Approx = Literal["expand", "reduce"]
Damping = Literal["exact", "pi", "each"]
DISTRIBUTIONS = {"curvlinops": "curvlinops-for-pytorch", "nngeometry": "nngeometry"}
LARGEST = 5000  # parameters of a matrix that is formed column by column


def library(name: str) -> Any:
    """A peer's module; raises ValueError that names the extra where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} cannot be imported ({error}): pip install -e '.[peers]'") from error


def installed(name: str) -> str:
    """Name and version of a peer, for a report; raises ValueError that names the extra where it is not there."""
    library(name)
    return f"{DISTRIBUTIONS[name]} {version(DISTRIBUTIONS[name])}"


def scale(loss: str, fisher_type: str, outputs: int) -> float:
    """What curvlinops multiplies the mean Fisher with: torch's MSELoss is twice 1/2 |f - y|^2, averaged over outputs.

    Its Hessian is 2 / C, but the square of its gradient is 4 / C of ours.
    """
    return 1.0 if loss == "cross_entropy" else (4.0 if fisher_type == "empirical" else 2.0) / outputs


def with_bias_apart(weights: Tensor) -> Tensor:
    """The input factor (D - 1, D - 1) of the weights alone and a bias treated apart, as one factor (D, D)."""
    return torch.block_diag(weights, weights.new_ones(1, 1))


def kronecker(layer: Layer, inputs: Tensor, outputs: Tensor) -> Kronecker:
    """A peer's factors of a layer: its input factor without the bias's column where it treats that apart."""
    return Kronecker(outputs, inputs if len(inputs) == layer.inputs else with_bias_apart(inputs))


def rotated(layer: Layer, input_basis: Tensor, output_basis: Tensor, values: Sequence[Tensor]) -> RotatedDiagonal:
    """A peer's eigenbases with eigenvalues of weight and bias together, or of weight and bias one after the other."""
    entries = torch.cat([value.reshape(layer.outputs, -1) for value in values], 1)
    basis = input_basis if len(input_basis) == layer.inputs else with_bias_apart(input_basis)
    return RotatedDiagonal(output_basis, basis, entries)


class Fitted(NamedTuple):
    """A peer's own object, its inverse once refreshed, and the batch that knows the order of the parameters."""

    batch: Instance
    peer: Any
    inverse: Any = None

    def as_list(self, vector: Tensor) -> list[Tensor]:
        """A parameter vector as curvlinops takes it."""
        return list(self.batch.unpack(vector).values())

    def as_vector(self, tensors: Sequence[Tensor]) -> Tensor:
        """A list of tensors as curvlinops returns it, as a parameter vector."""
        return self.batch.pack(dict(zip(_names(self.batch), tensors, strict=True)))


@dataclass(frozen=True)
class CurvlinopsKfac(FisherProbe):
    """K-FAC of curvlinops (KFACLinearOperator, KFACInverseLinearOperator).

    ``damping_rule``: ``exact`` and ``pi`` as in ``kfac``; ``each``, its default, adds the damping itself to either
    factor (A there is a mean over positions). It inverts at the first product: ``refresh`` asks for what that would.
    """

    kfac_approx: Approx = "expand"
    bias: Bias = "joint"
    damping_rule: Damping = "exact"

    def damping_unit(self, terms: int) -> float | None:
        return None if self.damping_rule == "each" else 1.0  # of a factor, not of the product

    def unsupported(self, instance: Instance) -> str | None:
        return refusal("curvlinops", instance)

    def update(self, state: Fitted | None, batch: Instance) -> Fitted:
        peer = _curvlinops_kfac("KFACLinearOperator", self, batch)
        with evaluation(batch.model):
            peer.compute_kronecker_factors()
        return Fitted(batch, peer)

    def refresh(self, state: Fitted) -> Fitted:
        rule = {"use_exact_damping": self.damping_rule == "exact", "use_heuristic_damping": self.damping_rule == "pi"}
        damping = self.damping * _scale(self, state.batch)
        inverse = library("curvlinops").KFACInverseLinearOperator(
            state.peer, damping=damping, cache=True, min_damping=0.0, **rule
        )
        for layer in state.batch.layers:
            inverse._compute_or_get_cached_inverse(layer.name)
        return state._replace(inverse=inverse)

    def precondition(self, state: Fitted, gradient: Tensor) -> Tensor:
        return state.as_vector(state.inverse @ state.as_list(gradient)) * _scale(self, state.batch)

    def operator(self, state: Fitted) -> BlockDiagonal:
        inputs, outputs = state.peer._input_covariances, state.peer._gradient_covariances
        unit = _scale(self, state.batch)
        return BlockDiagonal(
            [kronecker(layer, inputs[layer.name], outputs[layer.name] / unit) for layer in state.batch.layers]
        )


@dataclass(frozen=True)
class CurvlinopsEkfac(FisherProbe):
    """EKFAC of curvlinops (EKFACLinearOperator): eigendecompositions belong to the statistics, as in ``ekfac``."""

    kfac_approx: Approx = "expand"
    bias: Bias = "joint"

    def unsupported(self, instance: Instance) -> str | None:
        return refusal("curvlinops", instance)

    def update(self, state: Fitted | None, batch: Instance) -> Fitted:
        peer = _curvlinops_kfac("EKFACLinearOperator", self, batch)
        with evaluation(batch.model):
            peer.compute_kronecker_factors()
            peer.compute_eigenvalue_correction()
        return Fitted(batch, peer)

    def refresh(self, state: Fitted) -> Fitted:
        damping = self.damping * _scale(self, state.batch)
        inverse = library("curvlinops").KFACInverseLinearOperator(state.peer, damping=damping, use_exact_damping=True)
        return state._replace(inverse=inverse)

    def precondition(self, state: Fitted, gradient: Tensor) -> Tensor:
        step = state.as_vector(state.inverse @ state.as_list(gradient))
        return step * _scale(self, state.batch)

    def operator(self, state: Fitted) -> BlockDiagonal:
        peer, unit = state.peer, _scale(self, state.batch)
        blocks = []
        for layer in state.batch.layers:
            found = peer._corrected_eigenvalues[layer.name]
            positions = peer._mapping[layer.name]
            values = [found] if isinstance(found, Tensor) else [found[positions[name]] for name in _parts(layer)]
            bases = peer._input_covariances_eigenvectors, peer._gradient_covariances_eigenvectors
            blocks.append(rotated(layer, *(basis[layer.name] for basis in bases), [v / unit for v in values]))
        return BlockDiagonal(blocks)


@dataclass(frozen=True)
class CurvlinopsGgn(FisherProbe):
    """The GGN, the sampled or the empirical Fisher of curvlinops: nothing is stored, every product runs the network.

    ``precondition`` is the conjugate-gradient method that its CGInverseLinearOperator runs, with damping added.
    """

    tolerance: float = 1e-6
    iterations: int = 1000

    def unsupported(self, instance: Instance) -> str | None:
        large = f"a matrix of {instance.size} parameters is not formed: at most {LARGEST}"
        return refusal("curvlinops", instance) or (large if instance.size > LARGEST else None)

    def update(self, state: Fitted | None, batch: Instance) -> Fitted:
        curvlinops = library("curvlinops")
        sampled = {"seed": self.seed, "mc_samples": self.mc_samples}
        kinds: Mapping[str, tuple[Any, dict[str, int]]] = {
            "type-2": (curvlinops.GGNLinearOperator, {}),
            "mc": (curvlinops.FisherMCLinearOperator, sampled),
            "empirical": (curvlinops.EFLinearOperator, {}),
        }
        kind, options = kinds[self.fisher_type]
        return Fitted(batch, kind(*_curvlinops_problem(batch), check_deterministic=False, **options))

    def product(self, state: Fitted, V: Tensor) -> Tensor:
        """The mean Fisher times a vector (P,)."""
        unit = _scale(self, state.batch)
        with evaluation(state.batch.model):
            return state.as_vector(state.peer @ state.as_list(V)) / unit

    def precondition(self, state: Fitted, gradient: Tensor) -> Tensor:
        def damped(V: Tensor) -> Tensor:
            return self.product(state, V[:, 0])[:, None] + self.damping * V

        solve = library("linear_operator.utils.linear_cg").linear_cg
        return solve(damped, gradient[:, None], tolerance=self.tolerance, max_iter=self.iterations)[:, 0]

    def operator(self, state: Fitted) -> Dense:
        eye = torch.eye(state.batch.size, dtype=state.batch.dtype, device=state.batch.device)
        return Dense(torch.stack([self.product(state, column) for column in eye], 1))


@dataclass(frozen=True)
class NngeometryKfac(FisherProbe):
    """K-FAC of NNGeometry (PMatKFAC): expand, bias joint; its inverse is that of the rule ``pi``.

    The empirical Fisher has no function of its own there: its backend is given the log-likelihood of the targets.
    """

    damping_rule: ClassVar[str] = "pi"

    def unsupported(self, instance: Instance) -> str | None:
        return _nngeometry_refusal(self, instance)

    def update(self, state: Fitted | None, batch: Instance) -> Fitted:
        return Fitted(batch, _nngeometry(self, batch, "PMatKFAC"))

    def refresh(self, state: Fitted) -> Fitted:
        with _default_dtype(state.batch.dtype):
            return state._replace(inverse=state.peer.inverse(regul=self.damping))

    def precondition(self, state: Fitted, gradient: Tensor) -> Tensor:
        return from_pvector(state.batch, state.inverse.mv(as_pvector(state, gradient)))

    def operator(self, state: Fitted) -> BlockDiagonal:
        return BlockDiagonal([kronecker(layer, *state.peer.data[layer.name]) for layer in state.batch.layers])


@dataclass(frozen=True)
class NngeometryEkfac(FisherProbe):
    """EKFAC of NNGeometry (PMatEKFAC with ``update_diag``); the damping is that of the matrix."""

    def unsupported(self, instance: Instance) -> str | None:
        return _nngeometry_refusal(self, instance)

    def update(self, state: Fitted | None, batch: Instance) -> Fitted:
        peer = _nngeometry(self, batch, "PMatEKFAC")
        with _default_dtype(batch.dtype), evaluation(batch.model), _drawing(self.seed):
            peer.update_diag((batch.inputs.clone(), batch.targets))
        return Fitted(batch, peer)

    def precondition(self, state: Fitted, gradient: Tensor) -> Tensor:
        return from_pvector(state.batch, state.peer.solvePVec(as_pvector(state, gradient), regul=self.damping))

    def operator(self, state: Fitted) -> BlockDiagonal:
        bases, values = state.peer.data
        return BlockDiagonal([rotated(la, *bases[la.name], [values[la.name]]) for la in state.batch.layers])


def refusal(name: str, instance: Instance) -> str | None:
    """Why a peer cannot be measured on an instance, or gives another matrix there than it says."""
    try:
        library(name)
    except ValueError as error:
        return str(error)
    for layer in instance.layers:
        left, right, top, bottom = layer.padding
        reasons = {
            f"{name} covers no {layer.kind}": layer.kind == "conv1d",
            f"{name} has no factor per group": layer.groups > 1,
            f"{name} pads with zeros, alike on both sides": layer.padding_mode != "zeros"
            or (left, top) != (right, bottom),
        }
        for reason, holds in reasons.items():
            if holds:
                return f"layer {layer.name!r}: {reason}"
    if not isinstance(instance.inputs, Tensor) or instance.terms_per_sample > 1 or instance.terms < instance.samples:
        return f"{name} is given one tensor of inputs and one loss term per sample here"
    return None


def as_pvector(state: Fitted, vector: Tensor) -> Any:
    """A parameter vector as NNGeometry takes it."""
    tensors = state.batch.unpack(vector)
    parts = {la.name: tuple(tensors[f"{la.name}.{part}"] for part in _parts(la)) for la in state.batch.layers}
    kind = library("nngeometry.object.vector").PVector
    return kind(state.peer.generator.layer_collection, dict_repr=parts)


def from_pvector(batch: Instance, vector: Any) -> Tensor:
    """A vector of NNGeometry as a parameter vector."""
    parts = vector.to_dict()
    named = {f"{la.name}.{part}": parts[la.name][i] for la in batch.layers for i, part in enumerate(_parts(la))}
    return batch.pack(named)


def _scale(probe: FisherProbe, batch: Instance) -> float:
    return scale(batch.loss, probe.fisher_type, batch.classes)


def _parts(layer: Layer) -> tuple[str, ...]:
    return ("weight", "bias") if layer.bias else ("weight",)


def _names(batch: Instance) -> list[str]:
    return [f"{layer.name}.{part}" for layer in batch.layers for part in _parts(layer)]


def _curvlinops_problem(batch: Instance) -> tuple[Any, ...]:
    named = dict(batch.model.named_parameters())
    losses = {"cross_entropy": torch.nn.CrossEntropyLoss(), "gaussian": torch.nn.MSELoss()}
    return batch.model, losses[batch.loss], [named[name] for name in _names(batch)], [(batch.inputs, batch.targets)]


def _curvlinops_kfac(name: str, probe: CurvlinopsKfac | CurvlinopsEkfac, batch: Instance) -> Any:
    return getattr(library("curvlinops"), name)(
        *_curvlinops_problem(batch),
        check_deterministic=False,
        num_data=batch.samples,
        num_per_example_loss_terms=1,
        fisher_type=str(probe.fisher_type),
        mc_samples=probe.mc_samples if probe.fisher_type == "mc" else 1,
        seed=probe.seed,
        kfac_approx=probe.kfac_approx,
        separate_weight_and_bias=probe.bias == "separate",
    )


def _nngeometry_refusal(probe: FisherProbe, instance: Instance) -> str | None:
    if probe.fisher_type == "mc" and instance.loss != "cross_entropy":
        return "NNGeometry draws labels for classification alone"
    if any(size.positions > 1 and size.kernel == 0 for size in instance.sizes.values()):
        return "NNGeometry takes a Linear without positions"
    return refusal("nngeometry", instance)


def _nngeometry(probe: FisherProbe, batch: Instance, representation: str) -> Any:
    """A matrix of NNGeometry in a representation, fitted; its own functions where it has one for the Fisher type."""
    nngeometry = library("nngeometry")
    kind = getattr(library("nngeometry.object.pspace"), representation)
    covered = library("nngeometry.layercollection").LayerCollection()
    for layer in batch.layers:
        covered.add_layer_from_model(batch.model, batch.model.get_submodule(layer.name))
    examples = (batch.inputs.clone(), batch.targets)  # it asks for the gradient of the inputs it is given
    with _default_dtype(batch.dtype), evaluation(batch.model), _drawing(probe.seed):
        if probe.fisher_type == "empirical":
            backend = library("nngeometry.backend").TorchHooksJacobianBackend
            generator = backend(batch.model, lambda x, y: _log_likelihood(batch, x, y), layer_collection=covered)
            return kind(generator=generator, examples=examples)
        if probe.fisher_type == "mc":
            options = {"trials": probe.mc_samples, "layer_collection": covered}
            return nngeometry.FIM_MonteCarlo(batch.model, examples, kind, **options)
        variant = "classif_logits" if batch.loss == "cross_entropy" else "regression"
        return nngeometry.FIM(batch.model, examples, kind, variant=variant, layer_collection=covered)


def _log_likelihood(batch: Instance, x: Tensor, y: Tensor) -> Tensor:
    """Per sample, (N, 1), up to a constant."""
    outputs = batch.model(x)
    if batch.loss == "cross_entropy":
        return outputs.log_softmax(1).gather(1, y[:, None])
    return -(outputs - y).square().sum(1, keepdim=True) / 2


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """NNGeometry makes constants, and the epsilon in its denominators, in torch's default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """NNGeometry draws from torch's global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
