"""What the exact Fisher costs: seconds and bytes per stage, FLOPs, and how far that is from the machine's peak.

``default`` holds the claims of the README; ``full`` goes on to N = 256; ``quick`` is a look. The images of ResNet-18
come from CIFAR-10.
"""

from curvbench import Preset, Suite, probe, problem


def _resnet20(samples):
    return problem("resnet", samples=samples)


def _resnet18(samples):
    return problem("resnet", depth=18, dataset="cifar10", samples=samples)


def _preset(*problems):
    return Preset(problems, [probe("full")], meters=("exact",))


SUITE = Suite(
    "Cost of the exact Fisher",
    {
        "quick": _preset(_resnet20(16), _resnet20(32)),
        "default": _preset(*map(_resnet20, (16, 64, 128)), *map(_resnet18, (16, 64, 128))),
        "full": _preset(*map(_resnet20, (16, 32, 64, 128, 256)), *map(_resnet18, (16, 32, 64, 128, 256))),
    },
    summary="exact",
)
