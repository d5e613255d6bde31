"""LNGD, Table 5: what its layer-wise rate and its local Fisher each bring.

``paper``: as Table 2, in the user's folder of ImageNet. ``default``: a surrogate, a narrow ResNet-8 on digits, in which
mu, not reported, is searched for. Probes cover the weights only, for which the methods are published.
"""

from curvbench import Preset, Search, Suite, Training, probe, problem

PROBES = [
    probe("lngd", fisher_type="type-2", layer_rate="corrected"),
    probe("lngd", layer_rate="none"),
    probe("lngd", layer_rate="corrected"),
]

SUITE = Suite(
    "LNGD, Table 5",
    {
        "default": Preset(
            [problem("resnet", depth=8, width=4)],
            PROBES,
            seeds=(0, 1, 2),
            training=Training(epochs=5, lr=0.03, schedule="polynomial", stat_every=5, refresh_every=5, target=0.9),
            search=Search({"lr": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "mu": (1e-8, 1e-2)}, seeds=(10,), epochs=3),
            parameters="weights",
        ),
        "paper": Preset(
            [problem("resnet", depth=50, dataset="imagenet")],
            PROBES,
            seeds=range(5),
            training=Training(
                epochs=50,
                lr=0.1,
                batch=256,
                weight_decay=0.004,
                schedule="polynomial",
                power=4.0,
                stat_every=500,
                refresh_every=500,
                augment="crop-flip",
                target=0.759,
            ),
            search=Search({"lr": (1e-4, 1e-3, 1e-2, 0.1, 1.0)}),
            parameters="weights",
        ),
    },
    original="paper",
)
