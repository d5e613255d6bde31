"""FNGD, Figure 8: BLEU of a Transformer on Multi30k.

``paper``: 512, 2,048 and 8 heads; depth and vocabulary are not reported. ``steps``: the steps of that training, clocked
in turn with SGD's. ``small``: a Transformer an eighth as wide on a twentieth of the same data in batches of half the
size. ``default``: a surrogate, a tiny Transformer that completes digits, judged by the accuracy of its tokens.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

PROBES = [
    probe("fngd", stage="shared", gram="raw"),
    probe("kfac", fisher_type="mc"),
    probe("shampoo"),
    probe("adamw"),
    probe("sgdm"),
]
TRANSFORMER = problem(
    "transformer", task="multi30k", width=512, hidden=2048, heads=8, depth=6, vocabulary=10_000, length=32
)
SPARSE = {"stat_every": 10, "refresh_every": 100}
OFTEN = {"stat_every": 2, "refresh_every": 10}

SUITE = Suite(
    "FNGD, Figure 8",
    {
        "default": Preset(
            [problem("transformer")],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=5, lr=0.1, batch=64, schedule="step"),
            tuned={"kfac": OFTEN, "shampoo": OFTEN},
            search=Search(
                {"lr": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "damping": (0.03, 0.3, 1.0)}, seeds=(10,), epochs=3
            ),
        ),
        "small": Preset(
            [problem("transformer", task="multi30k", width=64, hidden=256, heads=4, length=16)],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=4, lr=0.1, batch=32, schedule="step", share=0.05),
            tuned={"kfac": OFTEN, "shampoo": OFTEN},
            search=Search({"lr": (0.003, 0.01, 0.1, 0.3)}, seeds=(10,), epochs=1),
        ),
        "paper": Preset(
            [TRANSFORMER],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=100, lr=0.1, batch=64, schedule="step"),
            tuned={"kfac": SPARSE, "shampoo": SPARSE},
            search=Search(
                {"lr": (1e-4, 1e-3, 1e-2, 0.1), "damping": (0.03, 0.3), "alpha": (0.001, 0.003, 0.005, 0.008, 0.01)}
            ),
        ),
        "steps": Preset(
            [TRANSFORMER],
            PROBES[:3],
            seeds=(0, 1, 2),
            training=Training(epochs=1, lr=1e-3, batch=64, paced=4),
            tuned={"kfac": SPARSE, "shampoo": SPARSE},
        ),
    },
    original=("paper", "steps"),
)
