"""Optimizers of torch, and of public packages (``pip install -e '.[public]'``), measured by the steps that they take.

Every optimizer is warmed up with drawn batches at frozen weights. A step is compared with the exact one as it is, and
as the slope of the frozen state. Without the packages their cells say so. ``quick``: torch's own on a small network.
"""

from curvbench import Preset, Suite, probe, problem

WARM = {"updates": 32, "batch_size": 32}
TORCH = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Adafactor", "Rprop")
PUBLIC = (
    ("pytorch_optimizer.SOAP", {"precondition_frequency": 10, "period": 10}),
    ("pytorch_optimizer.Shampoo", {"preconditioning_compute_steps": 10, "period": 10}),
    ("pytorch_optimizer.Kron", {}),
    ("pytorch_optimizer.Lion", {}),
    ("pytorch_optimizer.AdaBelief", {}),
    ("pytorch_optimizer.Lamb", {}),
    ("heavyball.SOAP", {}),
    ("heavyball.KLShampoo", {}),
    ("heavyball.PSGDKron", {}),
    ("heavyball.Muon", {}),
)
OPTIMIZERS = [(f"torch.optim.{name}", {}) for name in TORCH]
MOMENTUM = ("torch.optim.SGD", {"momentum": 0.9})


def probes(optimizers):
    """Every optimizer in both readings."""
    return [
        probe(f"torch_optim:{name}", **options, **WARM, **reading)
        for name, options in optimizers
        for reading in ({}, {"reading": "slope"})
    ]


SUITE = Suite(
    "Optimizers",
    {
        "quick": Preset([problem("mlp", hidden=8, depth=1, samples=64)], probes(OPTIMIZERS[:3]), dtype="float64"),
        "default": Preset(
            [problem("mlp", samples=128, epochs=10)],
            [probe("identity"), *probes([MOMENTUM, *OPTIMIZERS, *PUBLIC]), probe("layer")],
            dtype="float64",
        ),
    },
)
