"""Ginger, Table 2: T5-small on XSum, trained whole and by LoRA.

``paper``: in the user's folder of XSum, from random weights where the paper fine-tunes published ones; gamma is not
reported. ``default``: a surrogate, a tiny T5 on embedded sentences and some of the six ranks.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

RANKS = (1, 2, 4, 8, 16, 32)


def _probes(memories, ranks):
    return [
        probe("sgdm"),
        probe("adam", beta2=0.99),
        *(probe("qng", memory=memory) for memory in memories),
        *(probe("ginger", rank=rank, damping=0.01) for rank in ranks),
    ]


SUITE = Suite(
    "Ginger, Table 2",
    {
        "default": Preset(
            [problem("t5", mode="full"), problem("t5", mode="lora")],
            _probes((1, 16), (1, 8, 16)),
            seeds=(0, 1, 2),
            training=Training(epochs=4, lr=0.1, batch=32),
            search=Search({"lr": (0.01, 0.1, 1.0, 10.0)}, seeds=(10,), epochs=2),
        ),
        "paper": Preset(
            [problem("t5", size="small", task="xsum", mode=mode, source=512, target=128) for mode in ("lora", "full")],
            _probes(RANKS, RANKS),
            seeds=(0, 1, 2),
            training=Training(epochs=1, lr=0.1, batch=4),
            search=Search({"lr": (0.1, 0.5, 0.01, 0.05, 0.001, 0.005, 1e-4, 5e-4)}),
        ),
    },
    original="paper",
)
