"""Seconds and resident memory of what a run spends its time in."""

from __future__ import annotations

import gc

import torch

import curvbench as cb
from curvbench import training
from curvbench.fisher import compressed_fisher
from curvbench.shipped import DATA

SAMPLE = DATA / "sample"
PROBES = ("ekfac", "eva", "ginger", "kfac", "lngd", "mbf", "shampoo")


def _instance() -> cb.Instance:
    problem = cb.problem("resnet", depth=8, width=8, samples=16)
    torch.manual_seed(0)
    model = problem.model().eval()
    inputs, targets = training.batch(problem, problem.data(None), 0, "cpu", torch.float32)
    return cb.Instance(model, inputs, targets, problem.loss)


class Fisher:
    """The exact Fisher of a narrow ResNet-8."""

    version = "2"  # all parameters; version 1 was of the weights

    def setup(self) -> None:
        torch.set_num_threads(1)
        self.instance = _instance()

    def time_gram(self) -> None:
        cb.exact_fisher(self.instance).gram()

    def peakmem_gram(self) -> None:
        cb.exact_fisher(self.instance).gram()


class Step:
    """What a probe does in a step."""

    version = "2"  # all parameters; version 1 was of the weights
    param_names = ("probe",)
    params = (PROBES,)

    def setup(self, probe: str) -> None:
        torch.set_num_threads(1)
        self.instance, self.probe = _instance(), cb.probe(probe)
        self.gradient = self.instance.gradient()
        self.state = self.probe.fit(self.instance)
        self.refreshed = self.probe.refresh(self.state)
        gc.collect()

    def time_statistics(self, probe: str) -> None:
        self.probe.update(self.state, self.instance)

    def time_refresh(self, probe: str) -> None:
        self.probe.refresh(self.state)

    def time_precondition(self, probe: str) -> None:
        self.probe.precondition(self.refreshed, self.gradient)

    def peakmem_step(self, probe: str) -> None:
        state = self.probe.refresh(self.probe.update(self.state, self.instance))
        self.probe.precondition(state, self.gradient)


class ManyOutputs:
    """Statistics of a layer with 1,000 outputs."""

    version = "1"
    param_names = ("probe",)
    params = (("diag", "ekfac", "kfac", "thor", "tkfac"),)

    def setup(self, probe: str) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = torch.nn.Linear(128, 1000)
        self.instance = cb.Instance(model, torch.randn(8, 128), torch.zeros(8, dtype=torch.int64))
        self.probe = cb.probe(probe)

    def time_statistics(self, probe: str) -> None:
        self.probe.update(None, self.instance)


class FewParameters:
    """The exact Fisher of a layer with 90 parameters and 1,800 columns."""

    version = "1"

    def setup(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 10)
        self.instance = cb.Instance(model, torch.randn(200, 8), torch.zeros(200, dtype=torch.int64))

    def time_spectrum(self) -> None:
        fisher = cb.exact_fisher(self.instance)
        fisher.frobenius_norm()
        fisher.eigenvalues(10)


class CompressedFisher:
    """The exact Fisher of two layers with 2,000 outputs of 16 inputs."""

    version = "1"

    def setup(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2000))
        self.instance = cb.Instance(model, torch.randn(16, 8), torch.zeros(16, dtype=torch.int64))

    def time_norm(self) -> None:
        compressed_fisher(self.instance).frobenius_norm()

    def peakmem_norm(self) -> None:
        compressed_fisher(self.instance).frobenius_norm()


class Training:
    """A training step of SGD, and FNGD's after its first epoch, which is to cost the same."""

    version = "1"
    param_names = ("method",)
    params = (("sgd", "fngd"),)

    def setup(self, method: str) -> None:
        torch.set_num_threads(1)
        instance = _instance()
        self.model, self.x, self.y = instance.model.train(), instance.inputs, instance.targets
        if method == "sgd":
            self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01)
            self.forward = lambda: self.model(self.x)
        else:
            optimizer = self.optimizer = cb.NaturalGradient(self.model, cb.probe("fngd", stage="shared"), 0.01)
            self.forward = lambda: optimizer.forward(self.x, self.y)
        for _ in range(6):  # the first steps have the first epoch and verify the model
            self.time_step(method)
        gc.collect()

    def time_step(self, method: str) -> None:
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.forward(), self.y).backward()
        self.optimizer.step()

    def peakmem_step(self, method: str) -> None:
        self.time_step(method)


class Load:
    """Reading the shipped sample."""

    version = "1"

    def time_load(self) -> None:
        cb.load(SAMPLE)
