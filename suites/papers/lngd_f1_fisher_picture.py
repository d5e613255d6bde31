"""LNGD, Figure 1: its Fisher and the exact one in the second layer of an MLP.

``paper``: MNIST of 14 x 14 pixels, trained with LNGD, without biases, which the 400 x 400 block does not have. The
paper reports neither epochs nor rate: the rate is from the grid of its Table 1, as are batch, decay and intervals.
``default``: a surrogate on digits, trained by SGD. Probes cover the weights only, for which the methods are published.
"""

from curvbench import Preset, Suite, Training, probe, problem

SUITE = Suite(
    "LNGD, Figure 1",
    {
        "default": Preset(
            [problem("mlp", epochs=5)],
            [probe("lngd"), probe("kfac"), probe("layer")],
            seeds=(0, 1, 2),
            meters=("error",),
            parameters="weights",
        ),
        "paper": Preset(
            [problem("mlp", dataset="mnist14", bias=False)],
            [probe("lngd", layer_rate="corrected")],
            seeds=(0, 1, 2),
            training=Training(
                epochs=20, lr=3e-3, batch=256, weight_decay=0.004, stat_every=100, refresh_every=100, measure_at=(20,)
            ),
            parameters="weights",
        ),
    },
    original="paper",
)
