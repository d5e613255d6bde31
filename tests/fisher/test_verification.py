"""What has no Fisher is refused in one line, and no more is; contents are watched; later batches are verified."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from cases import weights_of
from couplings import Net, Sorted, batch, centred, made
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import by_parameters, near
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import curvbench as cb
from curvbench.fisher.uncovered import uncovered_trace
from curvbench.instance.contents import Contents


def test_random_models_are_told_from_coupled_ones() -> None:
    def noisy(net: Net, h: Tensor) -> Tensor:
        return F.dropout(h)

    def latent(net: Net, h: Tensor) -> Tensor:
        return h + torch.from_numpy(np.random.randn(*h.shape))

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.zero, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
            nn.init.zeros_(self.zero.weight)
            nn.init.zeros_(self.zero.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) + F.dropout(self.zero(torch.tanh(self.first(x) if False else x))))

    for make in (lambda: Net(noisy), lambda: Net(latent), Behind):
        states = torch.get_rng_state(), np.random.get_state()[1].tolist()
        model = made(make)
        states = torch.get_rng_state(), np.random.get_state()[1].tolist()
        with pytest.raises(ValueError, match="random in evaluation mode"):
            cb.Instance(model, *batch())
        assert torch.equal(torch.get_rng_state(), states[0]) and np.random.get_state()[1].tolist() == states[1]


def test_a_draw_without_effect_is_no_fault_and_leaves_the_random_state() -> None:
    def idle(_: Net, h: Tensor) -> Tensor:
        return h + 0 * torch.rand_like(h)

    model = made(lambda: Net(idle))
    before = torch.get_rng_state()
    instance = cb.Instance(model, *batch())
    cb.exact_fisher(instance).trace()
    instance.gradient()
    assert torch.equal(torch.get_rng_state(), before)


def trace(model: nn.Module, inputs: Any, targets: Tensor, loss: str = "cross_entropy") -> float:
    """The trace of the type-2 Fisher over all parameters, by plain autograd over the batch."""
    return float(oracles.type2_fisher(oracles.batch_terms(model, inputs, targets, loss), loss).trace())


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 9),
    st.sampled_from(["permuted", "tied", "scaled up", "scaled down", "zero", "fitted"]),
    st.sampled_from([torch.float64, torch.float32]),
    st.integers(0, 99),
)
def test_sound_models_are_never_refused(samples: int, kind: str, dtype: torch.dtype, seed: int) -> None:
    """Permuted, tied, saturated, dead or exactly fitted batches are measured as plain autograd has them."""
    x, _ = batch(samples, seed)
    x = {
        "permuted": x.flip(0),
        "tied": x[:1].repeat(samples, 1),
        "scaled up": 1e4 * x,
        "scaled down": 1e-4 * x,
        "zero": 0 * x,
    }.get(kind, x)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
    x = x.to(dtype)
    y = model(x).detach() if kind == "fitted" else torch.ones(samples, 2, dtype=dtype)
    instance = cb.Instance(model, x, y, loss="gaussian")
    wide = model.double(), x.double(), y.double(), "gaussian"
    assert cb.exact_fisher(cb.Instance(*wide)).trace() == pytest.approx(trace(*wide))
    assert instance.samples == samples


def test_an_exactly_fitted_regression_is_measured() -> None:
    """Its residuals are zero, or rounding: they verify nothing."""
    model = made(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)))
    x, _ = batch()
    fitted = model, x, model(x).detach(), "gaussian"
    assert cb.exact_fisher(cb.Instance(*fitted)).trace() == pytest.approx(trace(*fitted), rel=1e-12)


class Complex(nn.Module):
    """A spectral layer, as in a Fourier neural operator."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.down = nn.Linear(1, 4), nn.Linear(4, 1)
        self.spectral = nn.Parameter(torch.randn(4, 4, 3, dtype=torch.complex128) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.rfft(self.lift(x).mT)
        kept = torch.einsum("nim,iom->nom", f[..., :3], self.spectral)
        return self.down(torch.tanh(torch.fft.irfft(F.pad(kept, (0, f.shape[-1] - 3)), n=x.shape[1])).mT)


def test_complex_parameters_count_in_full() -> None:
    torch.manual_seed(0)
    model, x = Complex().double(), torch.randn(3, 8, 1).double()
    y = torch.randn(3, 8, 1).double()
    instance, weights = (cb.Instance(model, x, y, "gaussian", parameters=p) for p in ("all", "weights"))
    true = 0.0
    for output in model(x).flatten():
        gradient = torch.autograd.grad(output, model.spectral, retain_graph=True)[0]
        true += float(gradient.real.square().sum() + gradient.imag.square().sum())
    assert cb.exact_fisher(instance).layer("spectral").trace() == pytest.approx(true / 24, rel=1e-12)
    assert uncovered_trace(weights) == pytest.approx(true / 24, rel=1e-12)
    assert (instance.coverage, weights.coverage) == (1.0, pytest.approx(13 / (13 + 2 * 48)))


class Alone(nn.Module):
    """Runs differently where it is given one sample."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.first, self.scale, self.last, self.fails = (
            nn.Linear(6, 5),
            nn.Parameter(torch.rand(5)),
            nn.Linear(5, 4),
            fails,
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x)) * (self.scale.square() if len(x) > 1 else self.scale)
        return self.last(h.squeeze(0) if self.fails else h)


@pytest.mark.parametrize("fails", [False, True])
def test_the_trace_outside_of_a_model_that_runs_differently_on_one_sample(fails: bool) -> None:
    model = made(lambda: Alone(fails))
    x, y = batch()
    instance = weights_of(model, x, y)
    assert instance.uncovered == ["scale"]
    inside = cb.exact_fisher(instance).trace()
    assert uncovered_trace(instance) == pytest.approx(trace(model, x, y) - inside, rel=1e-12)


def test_parameters_whose_gradient_is_not_finite_are_left_out_alone() -> None:
    def root(_: Net, h: Tensor) -> Tensor:
        return (0 * h).abs().sqrt()

    instance = cb.Instance(made(lambda: Net(root)), *batch())
    reason = "its gradient is NaN or infinite on this batch"
    assert {"first.weight", "first.bias"} <= instance.left_out.keys() and set(instance.left_out.values()) == {reason}
    assert "last" in [layer.name for layer in instance.layers] and math.isfinite(cb.exact_fisher(instance).trace())


# --- contents ----------------------------------------------------------------------------------------------


def by_data(tensor: Tensor) -> None:
    tensor.data.mul_(1.5)


def by_numpy(tensor: Tensor) -> None:
    tensor.detach().numpy()[...] *= 1.5


def in_place(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.mul_(1.5)


def exchanged(tensor: Tensor) -> None:
    """The same numbers in another order: no sum would tell."""
    tensor.data.copy_(tensor.detach().flip(0).clone())


@pytest.mark.parametrize("write", [by_data, by_numpy, in_place, exchanged])
@pytest.mark.parametrize("which", ["input", "targets", "first.weight", "offset"])
def test_what_was_written_to_is_named(write: Callable[[Tensor], None], which: str) -> None:
    model = made(lambda: Net(lambda net, h: h + net.offset))
    model.register_buffer("offset", torch.linspace(1, 2, 6, dtype=torch.float64))
    x, _ = batch()
    y = torch.randn(12, 4).double()
    instance = cb.Instance(model, x, y, loss="gaussian")
    instance.gradient()
    write({"input": x, "targets": y, "first.weight": model.first.weight, "offset": model.offset}[which])
    for use in (cb.exact_fisher, lambda i: cb.fit(cb.probe("kfac"), i), lambda i: i.gradient(), lambda i: i.outputs()):
        with pytest.raises(ValueError, match=f"{which}.* changed after this Instance was made") as caught:
            use(instance)
        assert "\n" not in str(caught.value)


def test_what_is_no_tensor_and_has_changed_is_noticed() -> None:
    model = made(lambda: Net(lambda net, h: net.scale * h))
    model.scale = 1.0
    instance = cb.Instance(model, *batch())
    instance.gradient()
    model.scale = 5.0
    for use in (cb.exact_fisher, lambda i: i.outputs(), lambda i: cb.direction_errors(cb.probe("adam"), i)):
        with pytest.raises(ValueError, match="other outputs than when this Instance was made"):
            use(instance)


class Again(nn.Module):
    """Runs its first layer again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.reentrant = reentrant

    def part(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(torch.tanh(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.part, self.first(x), use_reentrant=self.reentrant))


def test_a_checkpointed_part_comes_by_plain_autograd() -> None:
    model, (x, y) = made(lambda: Again(False)), batch()
    instance = cb.Instance(model, x, y)
    expected = oracles.type2_fisher(oracles.batch_terms(model, x, y), "cross_entropy")
    assert near(by_parameters(instance, cb.exact_fisher(instance, precision="native").to_dense()), expected)


@pytest.mark.filterwarnings("ignore:None of the inputs")  # torch's own, of a pass without a graph
def test_a_reentrant_checkpoint_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"cannot be differentiated: .*use_reentrant") as caught:
        cb.Instance(made(lambda: Again(True)), *batch())
    assert "\n" not in str(caught.value)


def test_columns_that_overflow_are_an_error() -> None:
    x, y = batch()
    instance = cb.Instance(
        made(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))).float(), 1e19 * x.float(), y
    )
    with pytest.raises(ValueError, match="not finite"):
        cb.exact_fisher(instance).trace()


def test_who_writes_to_a_gradient_does_not_change_the_next() -> None:
    instance = cb.Instance(made(lambda: Net(lambda _, h: h)), *batch())
    true = instance.gradient().clone()
    instance.gradient().numpy()[...] = 7
    assert torch.equal(instance.gradient(), true)


def test_a_forward_pass_that_writes_to_a_parameter_is_refused_and_leaves_it() -> None:
    def normalize(net: Net, h: Tensor) -> Tensor:
        net.last.weight.data.div_(net.last.weight.data.norm())
        return h

    model = made(lambda: Net(normalize))
    before = model.last.weight.detach().clone()
    with pytest.raises(ValueError, match=r"writes to the model's parameter 'last\.weight'"):
        cb.Instance(model, *batch())
    assert torch.equal(model.last.weight, before)


def test_threads_wait_for_each_other() -> None:
    model = made(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4))).train()
    instances = [cb.Instance(model, *batch(seed=seed)) for seed in range(4)]
    true = [cb.exact_fisher(instance).trace() for instance in instances]
    found: list[list[float]] = [[] for _ in instances]

    def work(k: int) -> None:
        for _ in range(10):
            found[k].append(cb.exact_fisher(instances[k]).trace())

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [set(values) for values in found] == [{value} for value in true]
    assert model.training and model[2].training and not model[0]._forward_hooks


# --- what a model may be called with ------------------------------------------------------------------------


def test_layers_by_keyword_and_nested_inputs() -> None:
    class Fancy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, parts: list[Tensor], more: dict[str, Tensor]) -> Tensor:
            return self.last(input=torch.tanh(self.first(input=parts[0] + parts[1] + more["x"])))

    x, y = batch()
    model = made(Fancy)
    plain = nn.Sequential(model.first, nn.Tanh(), model.last)
    expected = oracles.type2_fisher(oracles.loss_terms(plain, 3 * x, y, "cross_entropy"), "cross_entropy")
    matrix = cb.exact_fisher(cb.Instance(model, ([x, x], {"x": x}), y)).to_dense()
    assert oracles.relative(matrix, expected) <= 1e-10


def test_a_padded_transformer_layer_and_a_mask_of_minus_infinity() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
            self.encoder, self.last = nn.TransformerEncoder(layer, 1), nn.Linear(6, 4)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.last(self.encoder(x, mask=self.mask, src_key_padding_mask=padding).mean(1))

    torch.manual_seed(0)
    model = Encoder().double().eval()
    padding = torch.zeros(6, 5).double()
    padding[:, 3:] = float("-inf")
    given = model, (torch.randn(6, 5, 6).double(), padding), torch.arange(6) % 4
    assert cb.exact_fisher(cb.Instance(*given)).trace() == pytest.approx(trace(*given), rel=1e-10)


class Masked(nn.Module):
    """Attention of positions that a mask (positions, positions) allows; here there are as many samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = F.scaled_dot_product_attention(self.first(x), x, x, attn_mask=mask)
        return self.last(h.mean(1))


def test_a_mask_as_long_as_the_batch_belongs_to_no_sample() -> None:
    given = made(Masked), (torch.randn(6, 6, 6).double(), torch.ones(6, 6).tril().bool()), torch.arange(6) % 4
    instance = cb.Instance(*given)
    assert not instance.coupled
    assert cb.exact_fisher(instance).trace() == pytest.approx(trace(*given), rel=1e-10)
    parts = [cb.exact_fisher(instance.part(rows)).trace() for rows in (slice(4), slice(4, 6))]
    assert sum(parts) == pytest.approx(trace(*given), rel=1e-10)


# --- in training -------------------------------------------------------------------------------------------


class Late(Sorted):
    """Sorts a batch in which a number is large."""

    def forward(self, x: Tensor) -> Tensor:
        return (
            super().forward(x) if (x[:, 1] > 5).any() else self.last(torch.tanh(self.inner(torch.tanh(self.first(x)))))
        )


def calm_and_wild() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    x, y = batch()
    wild = x.clone()
    wild[3, 1] = 6.0
    return (x, y), (wild, y)


def natural_steps(model: nn.Module, batches: list[tuple[Tensor, Tensor]], probe: str = "kfac") -> int:
    """How many steps are made."""
    optimizer = cb.NaturalGradient(model, cb.probe(probe), lr=1e-3)
    for count, (x, y) in enumerate(batches):
        optimizer.zero_grad()
        F.cross_entropy(optimizer.forward(x, y), y).backward()
        try:
            optimizer.step()
        except ValueError as refusal:
            assert "is used in another way in this batch" in str(refusal) and "\n" not in str(refusal)
            return count
    return len(batches)


def test_a_later_batch_in_another_order_has_its_own_rows() -> None:
    """Of the first batch all rows are in order; of the second they are sorted."""
    calm, wild = calm_and_wild()
    model = made(Late)
    optimizer = cb.NaturalGradient(model, cb.probe("kfac"), lr=0.0)
    for x, y in (calm, wild):
        F.cross_entropy(optimizer.forward(x, y), y).backward()
        optimizer.step()
    found = optimizer.probe.operator(optimizer._curvature.state).to_dense()
    expected = cb.fit(cb.probe("kfac"), cb.Instance(model, *wild)).to_dense()
    assert near(found, expected)


def test_a_later_batch_is_verified_at_new_shapes_and_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), verified = batch(), []
    monkeypatch.setattr(cb.Instance, "verify", lambda instance: verified.append(instance.samples))
    natural_steps(made(lambda: Net(lambda _, h: h)), [(x, y)] * 6 + [(x[:7], y[:7])] * 2)
    assert verified == [12, 12, 12, 7]  # after 1, 2 and 4 statistics, and where seven samples come first


class LateConvolution(nn.Module):
    """Convolves the rows in another order in a batch in which a number is large: no convolution of a batch then."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 2, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort() if (x[:, 1] > 5).any() else torch.arange(len(x))
        return self.last(torch.tanh(self.first(x[order, None])[order.argsort()]).flatten(1))


def test_a_later_batch_that_needs_other_blocks_is_refused() -> None:
    """Of samples that are coupled where the first batch was too small for that, and of a convolution of sorted rows."""
    (x, y), wild = calm_and_wild()
    assert natural_steps(made(lambda: Net(centred)), [(x[:3], y[:3]), (x, y)]) == 1
    assert natural_steps(made(LateConvolution), [(x, y), wild]) == 1


def test_fngd_weighs_the_rows_of_a_later_batch_in_another_order() -> None:
    (x, y), (wild, _) = calm_and_wild()
    model = made(Late)
    optimizer = cb.NaturalGradient(model, cb.probe("fngd", stage="shared"), lr=1e-3)
    F.cross_entropy(optimizer.forward(x, y), y).backward()
    optimizer.step()
    weights, _ = optimizer.probe.weigh(optimizer._curvature.state, cb.Instance(model, wild, y))
    terms = oracles.batch_terms(model, wild, y)
    scores = torch.stack([oracles.score(term, term.target, "cross_entropy") for term in terms])
    sizes = [layer.weight.numel() + layer.bias.numel() for layer in (model.first, model.inner, model.last)]
    expected = torch.cat([w @ part for w, part in zip(weights, scores.split(sizes, 1), strict=True)]) / len(y)
    optimizer.zero_grad()
    F.cross_entropy(optimizer.forward(wild, y), y).backward()
    assert weights.std() > 1e-3
    assert near(torch.cat([p.grad.flatten() for p in model.parameters()]), expected)


@pytest.mark.parametrize("gathered", [False, True])
def test_a_batch_buffer_that_is_reused_too_early_is_named(gathered: bool) -> None:
    model = made(lambda: Net(lambda _, h: h))
    optimizer = cb.NaturalGradient(model, cb.probe("kfac"), lr=1e-3)
    x, y = batch()
    F.cross_entropy(optimizer.forward(x, y), y).backward()
    x.numpy()[...] += 1
    with pytest.raises(ValueError, match=r"the input changed between .* copy of its batch"):
        optimizer.forward(x, y) if gathered else optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_nan_that_stays_is_no_change(dtype: torch.dtype) -> None:
    """Weights that diverged are NaN before and after; one that comes, goes or becomes infinite is a change."""
    x = torch.tensor([1.0, torch.nan, torch.inf, 0.0]).to(dtype)
    contents = Contents.of({"x": x})
    assert contents.changed({"x": x.clone()}) is None
    for place, value in [(0, torch.nan), (1, 1.0), (1, torch.inf), (2, -torch.inf), (2, torch.nan)]:
        changed = x.clone()
        changed[place] = value
        assert contents.changed({"x": changed}) == "x"


@pytest.mark.parametrize("dropout", [False, True])
def test_weights_written_to_before_the_step_are_named(dropout: bool) -> None:
    """Whether statistics share the training's pass or have one of their own, their backward passes come at the step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), *[nn.Dropout()] * dropout, nn.Linear(5, 4)).double()
    optimizer = cb.NaturalGradient(model, cb.probe("kfac"), lr=1e-3)
    x, y = batch()
    F.cross_entropy(optimizer.forward(x, y), y).backward()
    model[-1].weight.data.mul_(5)
    with pytest.raises(ValueError, match=r"parameter '\d\.weight' changed between"):
        optimizer.step()
