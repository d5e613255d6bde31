"""Optimizers of torch as probes: steps against formulas, what is refused, labels, identities, rows and costs."""

from __future__ import annotations

import importlib.util
import pickle
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import instance_of
from torch import Tensor

import curvbench as cb
from curvbench import registry
from curvbench.cells.measure import Fitted, accuracy_rows
from curvbench.identity.code import component
from curvbench.meters.cost import Stepper, clock_rows, flop_rows, period_clock, period_flops
from curvbench.meters.memory import state_bytes
from curvbench.parts.torch_optim import TorchOptim
from curvbench.planning import selection
from curvbench.registry import patience
from curvbench.spec import NoMatrix, Preset, Row, Status

OWN = '''
"""Optimizers of a user: with noise, a refresh, views, copies, a wrapper, rates per group, in float32 alone."""
import torch
from torch.optim import SGD, Optimizer


class Base(Optimizer):
    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(self.change(p, self.state[p]), alpha=-group["lr"])


class Noisy(Base):
    def change(self, p, state):
        return p.grad * torch.rand(()) + torch.rand(p.shape, dtype=p.dtype)


class Sign(Base):
    def change(self, p, state):
        return p.grad.sign()


class Refreshing(Base):
    """Every third step makes a product of matrices, which a field that is no state remembers."""

    calls = 0

    def change(self, p, state):
        self.calls = self.calls + 1 if p is self.param_groups[0]["params"][0] else self.calls
        if self.calls % 3 == 0:
            flat = p.grad.reshape(len(p), -1)
            state["product"] = flat @ flat.T
        return p.grad


class Viewing(Base):
    """Steps through views of the parameters, which it made at its first step."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if "flat" not in self.state[p]:
                    self.state[p]["flat"] = p.data.view(-1)
                self.state[p]["flat"].sub_(group["lr"] * p.grad.view(-1))


class Copying(Base):
    def change(self, p, state):
        start = state.setdefault("beginning", p.clone())
        return p.grad + 0.1 * (p - start)


class Trusting(Base):
    """The length of the step is that of the parameters, which no copy holds."""

    def change(self, p, state):
        return p.grad * p.norm() / p.grad.norm()


class Clearing(Base):
    """Takes the gradients away, as optimizers that save memory do."""

    def change(self, p, state):
        gradient, p.grad = p.grad, None
        return gradient


class Ending(Base):
    def change(self, p, state):
        raise SystemExit(3)


class Looping(Base):
    def change(self, p, state):
        while True:
            pass


class Single(Base):
    def change(self, p, state):
        return p.grad @ torch.eye(p.shape[-1], dtype=torch.float32) if p.ndim > 1 else p.grad


class Wrapper(Base):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.inner = SGD(self.param_groups)


def two_rates(params, lr=0.1):
    return SGD([{"params": params[:1], "lr": lr}, {"params": params[1:], "lr": 10 * lr}], lr=lr)


def no_optimizer(params):
    return None


number = 3
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "optimizers.py"
    path.write_text(OWN)
    return path


@pytest.fixture(scope="module")
def instance() -> cb.Instance:
    return instance_of("mlp_tanh")


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    return value.shape == expected.shape and bool((value - expected).norm() <= tolerance * expected.norm())


def adapted(text: str, **values: Any) -> TorchOptim:
    probe = registry.probe(f"torch_optim:torch.optim.{text}", **values)
    assert isinstance(probe, TorchOptim)
    return probe


def step(probe: TorchOptim, instance: cb.Instance, gradient: Tensor | None = None) -> Tensor:
    return probe.precondition(probe.fit(instance), instance.gradient() if gradient is None else gradient)


# --- steps against formulas --------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [1e-3, 0.5])
def test_sgd_steps_along_the_gradient(instance: cb.Instance, lr: float) -> None:
    """At the drawn learning rate of any size, and with a weight decay that is set to zero."""
    for reading in ("asis", "affine", "slope"):
        probe = adapted("SGD", lr=lr, reading=reading, updates=3, weight_decay=0.1)
        assert near(step(probe, instance), instance.gradient(), 1e-9)
    quality = cb.direction_errors(adapted("SGD", updates=2), instance)["quality"]
    assert quality == pytest.approx(cb.direction_errors(cb.probe("identity"), instance)["quality"], rel=1e-12)


def test_momentum_is_in_the_step_and_not_in_the_slope(instance: cb.Instance) -> None:
    gradient = instance.gradient()
    sums = sum(0.9**k for k in range(4))  # of three steps of the warm-up and the query
    assert near(step(adapted("SGD", momentum=0.9, updates=3), instance), sums * gradient)
    assert near(step(adapted("SGD", momentum=0.9, updates=3, reading="affine"), instance), gradient)
    assert near(step(adapted("SGD", momentum=0.9, updates=3, reading="slope"), instance), gradient, 1e-8)


def test_adam_of_equal_gradients_is_their_sign(instance: cb.Instance) -> None:
    gradient = instance.gradient()
    assert near(step(adapted("Adam", updates=5), instance), gradient / (gradient.abs() + 1e-8))


def test_adam_is_the_adam_here_which_takes_in_the_gradient_that_the_query_brings(instance: cb.Instance) -> None:
    here = cb.probe("adam")
    expected = here.precondition(here.fit(instance), instance.gradient())
    assert near(step(adapted("Adam"), instance), expected)
    assert not near(step(adapted("Adam", eps=1e-2, updates=3), instance), expected, 1e-3)


def test_the_slope_of_adam(instance: cb.Instance) -> None:
    """(1 - b1) / (1 - b1^t) g / (sqrt(b2 v / (1 - b2^t)) + eps): its own square leaves v."""
    drawn, count, b1, b2 = 3, 4, 0.9, 0.999
    v = torch.zeros(instance.size, dtype=torch.float64)
    for seed in range(count):
        v = b2 * v + (1 - b2) * instance.draw(drawn, seed).gradient() ** 2
    root = (b2 * v / (1 - b2 ** (count + 1))).sqrt() + 1e-8
    expected = (1 - b1) / (1 - b1 ** (count + 1)) * instance.gradient() / root
    probe = adapted("Adam", updates=count, batch_size=drawn, reading="slope")
    state = probe.fit(instance)
    assert near(probe.precondition(state, instance.gradient()), expected, 1e-6)
    expected_matrix = (1 - b1 ** (count + 1)) / (1 - b1) * root
    assert near(probe.operator(state).diagonal(), expected_matrix, 1e-6)
    assert probe.damped(state) is not None
    assert adapted("Adam", updates=count, batch_size=drawn).damped(state) is None


def test_every_group_has_its_own_rate(own: Path, instance: cb.Instance) -> None:
    probe = registry.parse_probe(f"{own}:two_rates[updates=2]")
    assert near(probe.precondition(probe.fit(instance), instance.gradient()), instance.gradient())


def test_views_of_parameters_move_with_them(own: Path, instance: cb.Instance) -> None:
    probe = registry.parse_probe(f"{own}:Viewing[updates=2]")
    state = probe.fit(instance)
    assert near(probe.precondition(state, instance.gradient()), instance.gradient())
    assert state_bytes(state) == 0, "a view is no memory of the optimizer"


def test_a_step_that_depends_on_the_parameters_is_taken_there(own: Path, instance: cb.Instance) -> None:
    probe = registry.parse_probe(f"{own}:Trusting[updates=1,lr=1e-3]")
    gradients = instance.unpack(instance.gradient())
    expected = {name: g * instance.parameters[name].norm() / g.norm() for name, g in gradients.items()}
    assert near(probe.precondition(probe.fit(instance), instance.gradient()), instance.pack(expected), 1e-9)


# --- a frozen state ----------------------------------------------------------------------------------------


def test_a_query_leaves_state_parameters_and_generators(own: Path, instance: cb.Instance) -> None:
    for text in (f"{own}:Noisy[updates=2]", "torch_optim:torch.optim.Adam[updates=2]"):
        probe = registry.parse_probe(text)
        before = {name: p.detach().clone() for name, p in instance.parameters.items()}
        torch.manual_seed(3)
        random.seed(3)
        drawn = torch.rand(2), random.random()
        torch.manual_seed(3)
        random.seed(3)
        state = probe.fit(instance)
        first, second = (probe.precondition(state, instance.gradient()) for _ in range(2))
        assert torch.equal(first, second)
        assert torch.equal(torch.rand(2), drawn[0]) and random.random() == drawn[1]
        assert all(torch.equal(p, before[name]) for name, p in instance.parameters.items())
        assert torch.equal(probe.precondition(probe.fit(instance), instance.gradient()), first)


def test_noise_is_that_of_the_seed(own: Path, instance: cb.Instance) -> None:
    steps = [step(registry.parse_probe(f"{own}:Noisy[updates=2,seed={seed}]"), instance) for seed in (0, 1)]  # type: ignore[arg-type]
    assert not near(steps[0], steps[1], 1e-3)


def test_an_update_gives_a_new_state_and_its_own_step(instance: cb.Instance) -> None:
    probe = adapted("Adam", updates=2)
    state = probe.fit(instance)
    query = probe.precondition(state, instance.gradient())
    after = probe.update(state, instance)
    assert near(probe.precondition(after, instance.gradient()), query, 1e-12)
    assert torch.equal(probe.precondition(state, instance.gradient()), query)
    assert near(probe.precondition(probe.update(after, instance), instance.gradient()), query, 1e-7)


def test_in_float32_the_state_is_single_and_the_query_is_not(instance: cb.Instance) -> None:
    """Memory is that of training, and rounding of the parameters is not divided by the learning rate."""
    single = instance.to(torch.float32)
    probe = adapted("Adam", updates=2, lr=1e-6)
    state = probe.fit(single)
    assert state_bytes(state) == 2 * 4 * single.size + 4 * len(single.unpack(single.gradient()))
    found = probe.precondition(state, single.gradient())
    assert found.dtype == torch.float32
    assert near(found.double(), single.gradient().sign().double(), 1e-4)


def test_an_optimizer_in_float32_alone_says_so(own: Path, instance: cb.Instance) -> None:
    probe = registry.parse_probe(f"{own}:Single[updates=2]")
    state = probe.fit(instance)
    assert near(probe.precondition(state, instance.gradient()), instance.gradient(), 1e-5)
    assert probe.remark(state).startswith("read asis in float32, beyond which it does not run: ")


# --- what is refused ---------------------------------------------------------------------------------------

REFUSED = {
    "torch_optim:torch.optim.LBFGS": "its step needs a closure",
    "torch_optim:torch.optim.ASGD": "its state holds copies of the parameters (ax)",
    "FILE:Copying": "its state holds copies of the parameters (beginning)",
    "FILE:Wrapper": "it wraps another optimizer, SGD: give that one",
    "FILE:no_optimizer": "it gives no torch.optim.Optimizer but NoneType",
    "FILE:number": "no probe 'number'",
    "FILE:Ending": "SystemExit: 3",
    "torch_optim:torch.optim.SGD[lr=x]": "cannot be measured with lr='x': ",
    "torch_optim:torch.optim.SGD[lr=1e999]": "lr must be above 0 and finite",
    "torch_optim:torch.optim.AdamW[lr=0.0]": "lr must be above 0",
    "torch_optim:torch.optim.AdamW[lr=-1]": "Invalid learning rate: -1",
    "torch_optim:torch.optim.AdamW[learning_rate=1]": "has no hyperparameter 'learning_rate'; it has lr, betas",
    "torch_optim:torch.optim.AdamW[lr]": "expected key=value",
    "torch_optim:torch.optim.AdamW[betas=(0.9,0.99)]": "got '0.99)': a tuple is written as 0.9/0.99",
    "torch_optim:torch.optim.AdamW[updates=0]": "updates must be at least 1",
    "torch_optim:torch.optim.AdamW[updates=x]": "updates must be an integer",
    "torch_optim:torch.optim.AdamW[statistics_dtype=float64]": "has no hyperparameter 'statistics_dtype'",
    "torch_optim:torch.optim.Adan": "no optimizer 'torch.optim.Adan': did you mean Adam",
    "torch_optim:torch.optm.Adam": "no optimizer 'torch.optm.Adam': No",
    "torch_optim:Adam": "no optimizer 'Adam': expected torch_optim:MODULE.NAME",
    "torch_optim": "unknown probe 'torch_optim'",
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.items(), ids=list(REFUSED))
def test_refusals_are_one_line_that_names_the_optimizer(own: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as refusal:
        registry.parse_probe(text.replace("FILE", str(own)))
    message = str(refusal.value)
    assert "\n" not in message and text.partition(":")[2].partition("[")[0] in message


def test_an_optimizer_that_does_not_return_is_refused(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.parse_probe(f"{own}:Sign")  # the file is imported
    monkeypatch.setenv(patience.SETTING, "0.2")
    with pytest.raises(ValueError, match=r"Looping cannot be measured: TooSlow: it takes longer than 0\.2 s"):
        registry.parse_probe(f"{own}:Looping")


def test_factories_without_a_name_are_refused() -> None:
    class Local(torch.optim.SGD):
        pass

    anonymous: list[Callable[..., Any]] = [lambda params: torch.optim.SGD(params), Local]
    for factory in anonymous:
        with pytest.raises(ValueError, match="cannot be imported: give a class or a function of a module"):
            cb.from_optimizer(factory)
    with pytest.raises(ValueError, match=r"eps=tensor.* has no text"):
        cb.from_optimizer(torch.optim.Adam, eps=torch.ones(()))


def test_a_package_that_is_not_there_is_the_reason_of_its_cell(instance: cb.Instance) -> None:
    probe = registry.parse_probe("torch_optim:not_a_package.Optimizer[lr=1,period=2]")
    assert probe.unsupported(instance) == "not_a_package is not installed, to which not_a_package.Optimizer belongs"
    assert registry.parse_probe(probe.label) == probe
    assert component(probe)["name"] == probe.name


def test_steps_in_bfloat16_are_refused(instance: cb.Instance) -> None:
    reason = adapted("SGD").unsupported(instance.in_dtype(torch.bfloat16))
    assert reason == "steps are read in float32 or float64, not in bfloat16"


def test_an_optimizer_of_matrices_refuses_vectors(instance: cb.Instance) -> None:
    reason = adapted("Muon").unsupported(instance)
    assert reason is not None and "2D" in reason and "\n" not in reason


# --- names -------------------------------------------------------------------------------------------------

LABELS = (
    "torch_optim:torch.optim.AdamW",
    "torch_optim:torch.optim.AdamW[lr=0.001]",
    "torch_optim:torch.optim.AdamW[lr=0.1,betas=0.5/0.9,amsgrad=True,reading=slope,updates=3,batch_size=2]",
)


@pytest.mark.parametrize("text", LABELS)
def test_a_label_reads_as_itself(text: str) -> None:
    probe = registry.parse_probe(text)
    assert probe.label == registry.selector(probe) == text
    assert registry.parse_probe(probe.label) == probe == pickle.loads(pickle.dumps(probe))
    assert hash(probe) == hash(registry.parse_probe(text))


def test_python_and_the_command_line_give_the_same_probe() -> None:
    made = cb.from_optimizer(torch.optim.AdamW, lr=1e-3, betas=(0.5, 0.9), reading="slope")
    assert made == registry.parse_probe("torch_optim:torch.optim.AdamW[lr=1e-3,betas=0.5/0.9,reading=slope]")
    assert made == cb.probe("torch_optim:torch.optim.AdamW", lr=1e-3, betas=(0.5, 0.9), reading="slope")


def test_a_file_has_the_name_of_its_class_and_a_selector_with_its_path(own: Path) -> None:
    probe = registry.parse_probe(f"{own}:Sign[lr=0.5]")
    assert probe.label == "Sign[lr=0.5]" and registry.selector(probe) == f"{own}:Sign[lr=0.5]"
    assert registry.parse_probe(registry.selector(probe)) == probe == pickle.loads(pickle.dumps(probe))
    assert cb.from_optimizer(registry.load_file(own).Sign, lr=0.5) == probe


def test_the_code_of_a_file_is_part_of_the_identity(tmp_path: Path) -> None:
    """Its comments are not; and the file of an installed package counts by the package's version."""
    text = "import torch\n\n\nclass Mine(torch.optim.SGD):\n    pass\n"
    places = {}
    for name, content in {"one": text, "two": "# a comment\n" + text, "other": text + "\n\nX = 1\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(content)
        places[name] = component(registry.parse_probe(f"{tmp_path / name / 'mine.py'}:Mine"))
    assert places["one"] == places["two"] != places["other"]
    assert component(adapted("SGD"))["source"] == component(adapted("Adam"))["source"]


def test_the_command_line_selects_optimizers(own: Path) -> None:
    preset = Preset([cb.problem("mlp", samples=16)], [cb.probe("kfac")])
    cells = selection.select("s", preset, probes=["torch_optim:torch.optim.Adam", f"{own}:Sign[lr=1]"])
    assert [cell.probe.label for cell in cells] == ["torch_optim:torch.optim.Adam", "Sign[lr=1]"]


# --- rows --------------------------------------------------------------------------------------------------


def rows_of(probe: TorchOptim, instance: cb.Instance) -> dict[tuple[str, str], Row]:
    rows = accuracy_rows(Fitted.of(probe, instance), cb.exact_fisher(instance))
    return {(row.metric, row.scope): row for row in rows}


def test_a_step_without_a_matrix_has_directions_alone(own: Path, instance: cb.Instance) -> None:
    rows = rows_of(registry.parse_probe(f"{own}:Sign[updates=2]"), instance)  # type: ignore[arg-type]
    reason = "no matrix: the step is homogeneous of degree 0 in the gradient"
    skipped = {key for key, row in rows.items() if row.status is Status.SKIPPED and row.reason == reason}
    assert skipped >= {("error.relative", "network"), ("health.condition", "network")}
    assert not [key for key, row in rows.items() if key[0].startswith("error.") and row.status is Status.OK]
    quality = rows["direction.quality", "network"]
    assert quality.status is Status.OK
    assert quality.method.endswith("read asis: the step is homogeneous of degree 0 in the gradient")


def test_a_linear_step_has_its_matrix(instance: cb.Instance) -> None:
    rows = rows_of(adapted("SGD", updates=2, reading="slope"), instance)
    identity = cb.errors(cb.fit(cb.probe("identity"), instance), cb.exact_fisher(instance))
    assert rows["error.relative", "network"].value == pytest.approx(identity["relative"], rel=1e-6)
    assert rows["direction.quality", "network"].method.endswith("read slope: the step is linear in the gradient")
    assert (rows["linearity.homogeneity", "slope"].value or 0) < 1e-8


def test_errors_of_a_step_without_a_matrix_say_why(instance: cb.Instance, own: Path) -> None:
    probe = registry.parse_probe(f"{own}:Sign[updates=2,reading=slope]")
    with pytest.raises(NoMatrix, match="no matrix: the step is homogeneous"):
        cb.fit(probe, instance)
    assert probe.damped(probe.fit(instance)) is None


# --- costs -------------------------------------------------------------------------------------------------


def test_a_step_costs_its_operations(instance: cb.Instance) -> None:
    """SGD with momentum multiplies and adds for the momentum, and again for the parameters: 4 operations."""
    stepper = Stepper(adapted("SGD", momentum=0.9, updates=2), instance)
    rows = {(row.metric, row.scope): row for row in flop_rows(stepper)}
    assert rows["flops.counted", "statistics"].value == pytest.approx(4 * instance.size, rel=0.3)
    assert rows["flops.uncounted_ops", "step"].value == 0
    assert not list(period_flops(stepper))


def test_costs_of_a_period(own: Path, instance: cb.Instance) -> None:
    stepper = Stepper(registry.parse_probe(f"{own}:Refreshing[updates=3,period=3]"), instance)
    counted = {row.scope: row.value or 0.0 for row in period_flops(stepper) if row.metric == "flops.counted"}
    plain, due, mean = (counted[f"{which} step"] for which in ("least", "most", "mean"))
    gradients = instance.unpack(instance.gradient()).values()
    products = sum(2 * len(g) ** 2 * (g.numel() // len(g)) for g in gradients)
    assert due - plain == products
    assert mean == pytest.approx((2 * plain + due) / 3, rel=1e-12)


def test_the_clock_of_a_period_is_of_steps_in_place(own: Path, instance: cb.Instance) -> None:
    rows = list(period_clock(Stepper(registry.parse_probe(f"{own}:Refreshing[updates=3,period=3]"), instance)))
    assert {row.scope for row in rows} == {"least step", "most step", "mean step"}
    for probe in (adapted("SGD", updates=1), cb.probe("diag")):
        assert not list(period_clock(Stepper(probe, instance)))


def test_the_clock_runs_steps_in_place(instance: cb.Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = Stepper(adapted("SGD", updates=1), instance)
    assert stepper.updated is not None and stepper.refreshed is not None
    monkeypatch.setattr(TorchOptim, "update", None)
    assert {"statistics", "step"} <= {row.scope for row in clock_rows(stepper) if row.metric == "time.ratio"}


def test_a_step_may_take_its_gradients_away(own: Path, instance: cb.Instance) -> None:
    probe = registry.parse_probe(f"{own}:Clearing[updates=2]")
    again = probe.in_place(probe.fit(instance), instance)
    again()
    again()
    assert near(step(probe, instance), instance.gradient())


@pytest.mark.parametrize(("name", "sizes"), [("SGD", 0), ("Adam", 2), ("RMSprop", 1), ("Adadelta", 2)])
def test_memory_is_the_state(instance: cb.Instance, name: str, sizes: int) -> None:
    """In sizes of the parameters; the counts of steps are one number each."""
    state = adapted(name, updates=1).fit(instance)
    scalars = state_bytes(state) - sizes * 8 * instance.size
    assert 0 <= scalars <= 8 * len(instance.unpack(instance.gradient()))


# --- public packages: the extra `public` -------------------------------------------------------------------


def test_public_optimizers_run_frozen(instance: cb.Instance) -> None:
    pytest.importorskip("heavyball", reason="the extra `public`")
    probe = registry.parse_probe("torch_optim:heavyball.KLShampoo[updates=4,batch_size=3]")
    state = probe.fit(instance)
    assert probe.remark(state).endswith("the step is linear in the gradient apart from its momentum")
    for name in ("SFAdamW", "MSAMLaProp"):
        with pytest.raises(ValueError, match="its state holds copies of the parameters"):
            registry.parse_probe(f"torch_optim:heavyball.{name}")


def test_the_report_of_agreement(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "scripts" / "agree.py"
    spec = importlib.util.spec_from_file_location("agree", path)
    assert spec is not None and spec.loader is not None
    agree = importlib.util.module_from_spec(spec)
    sys.modules["agree"] = agree
    spec.loader.exec_module(agree)
    pairs = [("adam", "torch.optim.Adam"), ("adam[beta2=0.9]", "torch.optim.Adam"), ("sgdm", f"{own.name}:Missing")]
    pairs += [("sgdm[momentum=0.0]", f"{own.name}:Sign"), ("sgdm[momentum=0.0]", f"{own.name}:Viewing")]
    arguments = [str(own.parent), "--steps", "4", *(text for pair in pairs for text in ("--pair", *pair))]
    assert agree.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()[-len(pairs) :]
    digits = [line.split("|")[-2].strip() for line in lines]
    assert int(digits[0]) >= 14 and int(digits[4]) >= 14
    assert int(digits[1]) <= 1 and int(digits[3]) == 0
    assert digits[2].startswith("not compared: no probe 'Missing' in")
    assert agree.main(["/no/such/folder"]) == 2
