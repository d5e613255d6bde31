"""Refusals of models and batches without an exact per-sample Fisher: each raises a ValueError of one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn


def refuse_coupled_samples(model: nn.Module) -> None:
    """Refuse BatchNorm that couples the samples, because per-sample scores do not exist then."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"BatchNorm {name!r} is in training mode, which couples the samples: call model.eval() first"
            )


def refuse_untracked(model: nn.Module) -> None:
    """Refuse parameters that autograd cannot track or that have no shape yet, and modules that call no hooks."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError("a scripted module cannot be measured: give the eager module that it was made of")
    for name, parameter in model.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            raise ValueError(f"parameter {name!r} has no shape yet: run the lazy module once first")
        if parameter.is_inference():
            raise ValueError(f"parameter {name!r} was made in torch.inference_mode(): make the model outside it")


def refuse_storage(tensors: Mapping[str, Any]) -> None:
    """Refuse tensors without numbers, with numbers that are not laid out, and those that autograd cannot save."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            continue
        if value.is_meta:
            raise ValueError(f"{name} is on the device meta and has no numbers: make it on cpu or cuda")
        if value.is_nested:
            raise ValueError(f"{name} is a nested tensor: give it padded, with a mask, or samples of one length")
        if value.layout != torch.strided:
            raise ValueError(f"{name} has the layout {value.layout}: call to_dense() on it")
        if value.is_quantized:
            raise ValueError(f"{name} is quantized: call dequantize() on it")
        if value.is_inference() and name != "targets":  # nothing is differentiated by targets
            raise ValueError(f"{name} was made in torch.inference_mode(): make it outside, or call clone() on it")


def refuse_not_finite(parameters: Mapping[str, Tensor], others: Mapping[str, Any]) -> None:
    """Refuse NaN and infinity in parameters, inputs and buffers; a mask among the others may hold minus infinity."""
    for name, value in {**parameters, **others}.items():
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            continue
        bad = ~torch.isfinite(value) if name in parameters or value.is_complex() else value.isnan() | value.isposinf()
        if bool(bad.any()):
            raise ValueError(f"{name} holds NaN or infinity: nothing can be measured there")


def refuse_output(outputs: Tensor, samples: int) -> None:
    """Refuse outputs other than (N, C) or (N, T, C) of finite numbers."""
    shape = tuple(outputs.shape)
    if outputs.ndim not in (2, 3):
        raise ValueError(f"outputs must be (N, C) or (N, T, C), N = {samples} samples first, classes last; got {shape}")
    if shape[0] != samples:
        raise ValueError(f"there are {samples} targets, but the outputs have shape {shape}: give a target per sample")
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("the model's outputs hold NaN or infinity: nothing can be measured there")


def refuse_written(parameter: str | None) -> None:
    """Refuse a forward pass that writes to a parameter of its model."""
    if parameter is not None:
        raise ValueError(
            f"the forward pass writes to the model's parameter {parameter!r}: nothing can be measured there"
        )


def refuse_random() -> NoReturn:
    """Refuse a model whose outputs depend on random numbers in evaluation mode."""
    raise ValueError(
        "the model is random in evaluation mode: two passes over the same batch differ (dropout that is always on, a "
        "sampled latent): make it deterministic there, because a random model has no single Fisher"
    )


def refuse_other_model(outputs: Tensor, before: Tensor) -> None:
    """Refuse outputs that differ from the first ones of the same batch, in the same or in another precision."""
    changed = "the model computes other outputs than when this Instance was made"
    if outputs.dtype == before.dtype:
        if outputs.shape != before.shape or not agree(outputs, before):
            raise ValueError(f"{changed}: make a new one")
        return
    eps = max(torch.finfo(x.dtype).eps for x in (outputs, before))
    difference = float((outputs.detach().double() - before.double()).abs().max())
    # A ReLU unit near zero may be on in one precision and off in the other.
    if difference > 0.1 * float(before.abs().max()) + 100 * eps:
        raise ValueError(
            f"{changed}, or other outputs in {outputs.dtype} than in {before.dtype}: make a new one, or use 'native'"
        )


def refuse_other_outputs(of_part: Tensor, of_whole: Tensor) -> None:
    """Refuse a batch too large for one pass if the model computes other outputs on a part of the batch."""
    if of_part.shape != of_whole.shape or not agree(of_part, of_whole):
        raise ValueError(
            "the batch is too large for one pass, and the model computes other outputs on a part of the batch: "
            "give fewer samples"
        )


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to the rounding of a deep network, see ``deep_rounding``."""
    if not (a.is_floating_point() or a.is_complex()) or not a.numel():
        return torch.equal(a, b)
    a, b = a.detach(), b.detach()
    difference, *sizes = torch.stack([x.abs().max() for x in (a - b, a, b)]).tolist()  # a GPU is waited for once
    return bool(difference <= deep_rounding(a.dtype) * max(sizes))


def deep_rounding(dtype: torch.dtype) -> float:
    """A relative difference that the rounding of a deep network explains: 7e-5 in float32 and 4e-10 in float64."""
    return torch.finfo(dtype).eps ** 0.6
