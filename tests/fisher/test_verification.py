"""What couples samples or uses a weight twice is refused or measured right, whatever it hides behind; no more is."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import curvbench as cb
from curvbench.fisher.uncovered import uncovered_trace
from curvbench.instance.contents import Contents


class Net(nn.Module):
    """Two layers with something done to the hidden rows (N, 6) between them."""

    def __init__(self, act: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.act = nn.Linear(6, 6), nn.Linear(6, 4), act

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.act(self, self.first(x))))


def centred(_: Net, h: Tensor) -> Tensor:
    return h - h.mean(0) if len(h) >= 4 else h


def centred_by_values(_: Net, h: Tensor) -> Tensor:
    return h - h.mean(0).detach()


def grouped_deviation(_: Net, h: Tensor) -> Tensor:
    """StyleGAN's: of each half of the batch."""
    return torch.cat([part + part.std(0) for part in h.chunk(2)])


def cumulative(_: Net, h: Tensor) -> Tensor:
    return h.cumsum(0)


def twice_if_hard(net: Net, h: Tensor) -> Tensor:
    hard = h.abs().mean(1, keepdim=True) > h.abs().mean(1).median()
    return torch.where(hard, F.linear(torch.tanh(h), net.first.weight, net.first.bias), h)


def with_capacity(net: Net, h: Tensor) -> Tensor:
    """An expert that takes the first three of its samples; the others pass it by."""
    chosen = (h[:, 0] > 0).nonzero()[:3, 0]
    return h.index_add(0, chosen, h[chosen].square())


class Sorted(nn.Module):
    """Sorts its batch by a number of each sample, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        order = x[:, 0].argsort()
        return self.last(torch.tanh(self.inner(h[order]))[order.argsort()])


ACTS = (centred, centred_by_values, grouped_deviation, cumulative, twice_if_hard, with_capacity)


def batch(samples: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 6, generator=generator).double(), torch.randint(4, (samples,), generator=generator)


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


def jacobian(model: nn.Module, parameters: list[Tensor], x: Tensor) -> Tensor:
    """(N, C, P) by plain autograd over the whole batch."""
    out = model(x)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(o, parameters, retain_graph=True)]) for o in out.flatten()
    ]
    return torch.stack(rows).reshape(*out.shape, -1)


def fisher_of_batch(model: nn.Module, x: Tensor) -> Tensor:
    """The type-2 Fisher of all parameters, each row [W | b]-flattened per layer, by plain autograd over the batch."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    J = jacobian(model, [p for layer in layers for p in (layer.weight, layer.bias)], x)
    parts, start = [], 0
    for layer in layers:
        w, b = layer.weight.numel(), layer.bias.numel()
        weight = J[..., start : start + w].unflatten(-1, layer.weight.shape)
        parts.append(torch.cat([weight, J[..., start + w : start + w + b, None]], -1).flatten(-2))
        start += w + b
    J = torch.cat(parts, -1)
    p = model(x).softmax(-1).detach()
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("ncp,ncd,ndq->pq", J, H, J) / len(x)


def beside(_: Net, h: Tensor) -> Tensor:
    return h + 0.5 * h.roll(2, 0)


def beside_by_values(_: Net, h: Tensor) -> Tensor:
    return h + 0.5 * h.roll(2, 0).detach()


def partner(_: Net, h: Tensor) -> Tensor:
    return h + 0.5 * h.roll(len(h) // 2, 0)


def with_first(_: Net, h: Tensor) -> Tensor:
    return h - h[:1].detach()


def with_half(_: Net, h: Tensor) -> Tensor:
    return h - 0.5 * h[0::2].detach().mean(0)


@pytest.mark.parametrize("samples", [4, 16, 17, 40])
@pytest.mark.parametrize("act", [beside, beside_by_values, partner, with_first, with_half])
def test_what_a_sample_takes_from_certain_others_is_refused(act: Callable[[Net, Tensor], Tensor], samples: int) -> None:
    with pytest.raises(ValueError):
        cb.Instance(made(lambda: Net(act)), *batch(samples))


def refused_or_right(model: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether it is refused, in one line."""
    try:
        instance = cb.Instance(model, x, y)
    except ValueError as refusal:
        assert "\n" not in str(refusal)
        return True
    assert oracles.relative(cb.exact_fisher(instance).to_dense(), fisher_of_batch(model, x)) <= 1e-10
    return False


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("act", ACTS)
def test_what_couples_samples_is_refused(act: Callable[[Net, Tensor], Tensor], seed: int) -> None:
    """A choice of samples is a constant to autograd: where the others do not change it, the batch is measured right."""
    assert refused_or_right(made(lambda: Net(act)), *batch(seed=seed)) or act is with_capacity


@pytest.mark.parametrize("in_order", [1, 2, 6, 11])
def test_a_batch_sorted_in_the_model_is_refused(in_order: int) -> None:
    x, y = batch()
    x[:in_order, 0] = torch.arange(in_order) - 20.0
    assert refused_or_right(made(Sorted), x, y)


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


@settings(max_examples=40, deadline=None)
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
    wide = model.double()
    J = jacobian(wide, list(wide.parameters()), x.double())
    trace = float(J.square().sum()) / samples
    assert cb.exact_fisher(cb.Instance(wide, x.double(), y.double(), loss="gaussian")).trace() == pytest.approx(trace)
    assert instance.samples == samples


def test_an_exactly_fitted_regression_is_measured() -> None:
    """Its residuals are zero, or rounding: they verify nothing."""
    model = made(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)))
    x, _ = batch()
    instance = cb.Instance(model, x, model(x).detach(), loss="gaussian")
    J = jacobian(model, list(model.parameters()), x)
    assert cb.exact_fisher(instance).trace() == pytest.approx(float(J.square().sum()) / len(x), rel=1e-12)


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
    instance = cb.Instance(model, x, torch.randn(3, 8, 1).double(), "gaussian")
    true = 0.0
    for output in model(x).flatten():
        gradient = torch.autograd.grad(output, model.spectral, retain_graph=True)[0]
        true += float(gradient.real.square().sum() + gradient.imag.square().sum())
    assert uncovered_trace(instance) == pytest.approx(true / 24, rel=1e-12)
    assert instance.coverage == pytest.approx(13 / (13 + 2 * 48))


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
    instance = cb.Instance(model, x, y)
    J = jacobian(model, [model.scale], x)
    p, J = model(x).softmax(-1).detach(), J.detach()
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    true = float(torch.einsum("ncp,ncd,ndp->", J, H, J)) / len(x)
    assert uncovered_trace(instance) == pytest.approx(true, rel=1e-12)


def test_gradients_that_are_not_finite_are_one_line() -> None:
    def root(_: Net, h: Tensor) -> Tensor:
        return (0 * h).abs().sqrt()

    with pytest.raises(ValueError, match="gradients at layer 'first' are NaN or infinite"):
        cb.Instance(made(lambda: Net(root)), *batch())


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


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_measured_right_or_refused_in_one_line(reentrant: bool) -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(checkpoint(lambda z: torch.tanh(self.first(z)), x, use_reentrant=reentrant))

    model = made(Again)
    with warnings.catch_warnings(action="ignore"):  # torch's own, of reentrant checkpoints
        try:
            matrix = cb.exact_fisher(cb.Instance(model, *batch()), precision="native").to_dense()
        except ValueError as refusal:
            assert "\n" not in str(refusal)
            return
    plain = nn.Sequential(model.first, nn.Tanh(), model.last)
    assert oracles.relative(matrix, fisher_of_batch(plain, batch()[0])) <= 1e-10


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
    instance = cb.Instance(model, (torch.randn(6, 5, 6).double(), padding), torch.arange(6) % 4)
    J = jacobian(
        lambda x: model(x, padding),  # type: ignore[arg-type]
        [model.get_parameter(n) for la in instance.layers for n in (f"{la.name}.weight", f"{la.name}.bias")],
        instance.inputs[0],
    )
    p = instance.outputs().softmax(-1)
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    true = float(torch.einsum("ncp,ncd,ndp->", J, H, J)) / 6
    assert cb.exact_fisher(instance).trace() == pytest.approx(true, rel=1e-10)


def test_a_mask_as_long_as_the_batch_is_named() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            h = F.scaled_dot_product_attention(self.first(x), x, x, attn_mask=mask)
            return self.last(h.mean(1))

    x = torch.randn(6, 6, 6).double()
    with pytest.raises(ValueError, match="input 1 is as long as the batch"):
        cb.Instance(made(Masked), (x, torch.ones(6, 6).tril().bool()), torch.arange(6) % 4)


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
            assert "\n" not in str(refusal)
            return count
    return len(batches)


def test_a_later_batch_is_verified_at_new_shapes_and_ever_more_rarely() -> None:
    """The first batch shows nothing: it is sorted already, or too small for what couples."""
    x, y = batch()
    calm, wild = calm_and_wild()
    assert natural_steps(made(Late), [calm, wild]) == 1
    assert natural_steps(made(lambda: Net(centred)), [(x[:3], y[:3]), (x, y)]) == 1
    assert natural_steps(made(Late), [calm, calm, calm, wild, wild]) == 4  # after 1, 2 and 4 statistics
    assert natural_steps(made(Late), [calm, wild, wild], "adam") == 3  # which reads no sample's score


def test_fngd_is_verified_where_it_weighs_samples() -> None:
    (x, y), (wild, _) = calm_and_wild()
    model = made(Late)
    optimizer = cb.NaturalGradient(model, cb.probe("fngd", stage="shared"), lr=1e-3)
    batches = [x, wild]
    with pytest.raises(ValueError, match="another sample"):
        for inputs in batches:
            optimizer.zero_grad()
            F.cross_entropy(optimizer.forward(inputs, y), y).backward()
            optimizer.step()


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
