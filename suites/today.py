"""The methods that people compare today, on a residual network and a small GPT, whoever trained them.

``default``: ResNet-20 on digits and a GPT, each at initialisation, after SGD and after AdamW, because a snapshot is
somebody's home: Adam's curvature is measured where Adam goes. ``quick``: narrow networks at initialisation. The
methods stand beside the plain gradient (``sgdm``) and what bounds them: exact layer blocks (``layer``) and the best
Kronecker products of these blocks in Frobenius norm (``kpsvd``) and in Kullback-Leibler divergence (``klkron``).
"""

from curvbench import Preset, Suite, probe, problem

METHODS = [
    probe("adam"),
    probe("muon"),
    probe("shampoo"),
    probe("soap"),
    probe("klshampoo"),
    probe("psgd"),
    probe("kfac"),
    probe("ekfac"),
    probe("lngd"),
    probe("kfac", fisher_type="forward-only", polar="after"),  # Newton-Muon
]
BESIDE = [probe("sgdm"), probe("kpsvd"), probe("klkron"), probe("layer")]


def _homes(name, epochs, **sizes):
    trained = [{"epochs": 0}, {"epochs": epochs}, {"epochs": epochs, "optimizer": "adam"}]
    return [problem(name, **sizes, **how) for how in trained]


SUITE = Suite(
    "Methods of today",
    {
        "quick": Preset(
            [problem("resnet", depth=8, width=8, samples=16), problem("gpt", vocabulary=16, tokens=4, samples=4)],
            [*METHODS, *BESIDE],
        ),
        "default": Preset(
            [*_homes("resnet", 5, samples=32), *_homes("gpt", 20, width=32, depth=2, samples=8)], [*METHODS, *BESIDE]
        ),
    },
)
