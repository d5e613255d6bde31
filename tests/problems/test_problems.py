"""Conformance: every problem in the directory is what the contract says; and what is special about each."""

from __future__ import annotations

import dataclasses
import importlib
import pickle
import pkgutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import curvbench as cb
import curvbench.problems
from curvbench import data
from curvbench.instance.likelihood import IGNORED
from curvbench.problems.cnn import CNN
from curvbench.problems.mlp import MLP
from curvbench.problems.resnet import ResNet
from curvbench.problems.transformer import GREY_LEVELS, Transformer
from curvbench.problems.vgg import VGG
from curvbench.spec import Dataset, Problem, Skip

COVERED = (nn.Linear, nn.Conv1d, nn.Conv2d)


def shipped() -> list[type[Problem]]:
    modules = (importlib.import_module(m.name) for m in pkgutil.iter_modules(problems_path(), "curvbench.problems."))
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Problem) and value.__module__ == module.__name__
    ]


def problems_path() -> list[str]:
    return list(curvbench.problems.__path__)


every = pytest.mark.parametrize("kind", shipped(), ids=lambda kind: kind.__name__)


def data_or_skip(problem: Problem) -> Dataset:
    try:
        return problem.data(None)
    except Skip as reason:
        pytest.skip(str(reason))


def fresh(problem: Problem, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    try:
        return problem.model().eval()
    except Skip as reason:
        pytest.skip(str(reason))


def weights(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def test_discovery_finds_the_files() -> None:
    files = {path.stem for path in Path(problems_path()[0]).glob("*.py")} - {"__init__"}
    assert (
        {kind.__module__.rpartition(".")[2] for kind in shipped()} == files >= {"mlp", "resnet", "transformer", "vgg"}
    )


@every
def test_defaults_construct_and_describe(kind: type[Problem]) -> None:
    problem = kind()
    assert problem.samples > 1
    assert problem.epochs == 0
    assert problem.label == problem.name == kind.__module__.rpartition(".")[2]
    assert (kind.__doc__ or "").splitlines()[0].endswith((".", ")", ":"))


@every
def test_hyperparameters_can_be_written_on_a_command_line(kind: type[Problem]) -> None:
    assert all(isinstance(value, int | float | bool | str) for value in kind().hyperparameters.values())


@every
def test_is_a_frozen_value(kind: type[Problem]) -> None:
    problem = kind()
    assert hash(problem) == hash(kind())
    assert pickle.loads(pickle.dumps(problem)) == problem
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.samples = 3
    assert kind(samples=3).label == f"{problem.name}[samples=3]"  # type: ignore[call-arg]


@every
@pytest.mark.parametrize("wrong", [{"samples": 0}, {"samples": -1}, {"epochs": -1}, {"mc_samples": -1}])
def test_senseless_fields_are_refused_in_one_line(kind: type[Problem], wrong: dict[str, int]) -> None:
    if not wrong.keys() <= kind().hyperparameters.keys():
        pytest.skip("this problem has no such field")
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must .*, got {next(iter(wrong.values()))}$") as caught:
        kind(**wrong)
    assert "\n" not in str(caught.value)


@every
def test_model_is_drawn_from_the_global_generator(kind: type[Problem]) -> None:
    first, again, other = (weights(fresh(kind(), seed)) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


@every
def test_model_fits_its_data(kind: type[Problem]) -> None:
    problem = kind()
    data = data_or_skip(problem)
    with torch.no_grad():
        outputs = fresh(problem)(data.test_inputs[:4])
    assert torch.isfinite(outputs).all()
    if problem.loss == "cross_entropy":
        assert outputs.shape[:-1] == data.test_targets[:4].shape
        labels = data.train_targets[data.train_targets != IGNORED]
        assert 0 <= labels.min() <= labels.max() < outputs.shape[-1]
    else:
        assert outputs.shape == data.test_targets[:4].shape


@every
def test_parts_have_the_shape_of_each_other(kind: type[Problem]) -> None:
    data = data_or_skip(kind())
    assert data.train_inputs.shape[1:] == data.test_inputs.shape[1:]
    assert len(data.train_inputs) == len(data.train_targets) >= kind().samples
    assert len(data.test_inputs) == len(data.test_targets) > 0


@every
def test_every_covered_layer_is_called_exactly_once(kind: type[Problem]) -> None:
    problem = kind()
    model, calls = fresh(problem), Counter[str]()
    names = [name for name, module in model.named_modules() if isinstance(module, COVERED)]
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    model(data_or_skip(problem).test_inputs[:2])
    assert names
    assert calls == Counter(names)


@every
def test_samples_do_not_touch_each_other_in_evaluation_mode(kind: type[Problem]) -> None:
    problem = kind()
    model, inputs = fresh(problem).double(), data_or_skip(problem).test_inputs[:4]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        torch.testing.assert_close(model(inputs)[1:2], model(inputs[1:2]), rtol=1e-10, atol=1e-10)


@every
@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "cifar100"])
def test_absent_data_is_a_skip_that_names_the_command(kind: type[Problem], dataset: str, tmp_path: Path) -> None:
    if "dataset" not in kind().hyperparameters:
        pytest.skip("this problem has one data set")
    with pytest.raises(Skip, match=f"`curvbench data {dataset} --data"):
        kind(dataset=dataset).data(tmp_path)  # type: ignore[call-arg]


@every
def test_unknown_data_set_is_refused(kind: type[Problem]) -> None:
    if "dataset" not in kind().hyperparameters:
        pytest.skip("this problem has one data set")
    with pytest.raises(ValueError, match="unknown data set 'nist': did you mean mnist"):
        kind(dataset="nist")  # type: ignore[call-arg]


def parameters(problem: Problem) -> int:
    return sum(parameter.numel() for parameter in problem.model().parameters())


def test_mlp_is_64_20_20_20_20_10() -> None:
    shapes = [tuple(m.weight.shape) for m in MLP().model().modules() if isinstance(m, nn.Linear)]
    assert shapes == [(20, 64), (20, 20), (20, 20), (20, 20), (10, 20)]


def test_mlp_ends_in_logits_and_follows_its_fields() -> None:
    model = MLP(hidden=7, depth=1, dataset="cifar100", activation="tanh", bias=False).model()
    assert [type(module) for module in model.children()] == [nn.Flatten, nn.Linear, nn.Tanh, nn.Linear]
    assert parameters(MLP(hidden=7, depth=1, dataset="cifar100", bias=False)) == 3072 * 7 + 7 * 100
    assert isinstance(list(MLP(depth=0).model().children())[-1], nn.Linear)


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"depth": -1}, {"activation": "gelu"}])
def test_mlp_refuses(wrong: dict[str, int | str]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*{next(iter(wrong.values()))}"):
        MLP(**wrong)  # type: ignore[arg-type]


# Counted by hand from the papers' tables; 18, 34 and 50 are widely published for CIFAR-10.
SIZES = {
    18: 11_173_962,
    34: 21_282_122,
    50: 23_520_842,
    20: 269_722,
    32: 464_154,
    44: 658_586,
    56: 853_018,
    110: 1_727_962,
}


@pytest.mark.parametrize("depth", SIZES)
def test_resnet_has_the_published_size(depth: int) -> None:
    assert parameters(ResNet(depth=depth, dataset="cifar10")) == SIZES[depth]


@pytest.mark.parametrize("depth", [8, 20, 32, 18, 34, 50])
def test_depth_counts_the_weight_layers(depth: int) -> None:
    layers = [name for name, m in ResNet(depth=depth).model().named_modules() if isinstance(m, COVERED)]
    assert len([name for name in layers if "downsample" not in name]) == depth


def torchvision_entries(depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's state dict, as they stand in torchvision_resnets.txt."""
    lines = Path(__file__).with_name("torchvision_resnets.txt").read_text().splitlines()
    entries = [line.split() for line in lines if line.startswith(f"{depth} ")]
    return {name: tuple(map(int, filter(None, shape.split("x")))) for _, name, shape in entries}


@pytest.mark.parametrize(("depth", "size"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_state_dicts_are_those_of_torchvision(depth: int, size: int) -> None:
    """Sizes as torchvision's documentation gives them for its weights of ImageNet."""
    model = ResNet(depth=depth, dataset="imagenet").model()
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list(found.items()) == list(torchvision_entries(depth).items())
    assert sum(parameter.numel() for parameter in model.parameters()) == size
    model.load_state_dict({name: torch.zeros(shape) for name, shape in torchvision_entries(depth).items()})


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_for_small_images_the_stem_and_the_last_layer_alone_have_other_shapes(depth: int) -> None:
    model = ResNet(depth=depth, dataset="cifar10").model()
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = torchvision_entries(depth)
    assert list(found) == list(theirs)
    assert {name for name in found if found[name] != theirs[name]} == {"conv1.weight", "fc.weight", "fc.bias"}


def test_the_stem_of_imagenet_quarters_the_image() -> None:
    model = ResNet(depth=18, dataset="imagenet", width=2).model().eval()
    sizes: list[tuple[int, ...]] = []
    model.get_submodule("layer1").register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[1:]))
    with torch.no_grad():
        assert model(torch.randn(1, 3, 224, 224)).shape == (1, 1000)
    assert sizes == [(2, 56, 56)]


def test_cnn_is_convolution_pool_and_two_dense_layers() -> None:
    """A 3 x 3 convolution leaves 26 x 26 of MNIST, the pool 13 x 13."""
    model = CNN(dataset="mnist").model()
    kinds = [nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert [type(module) for module in model.children()] == kinds
    assert parameters(CNN(dataset="mnist")) == 8 * 10 + (8 * 13 * 13 + 1) * 32 + 33 * 10
    with torch.no_grad():
        assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_cnn_is_drawn_as_he_says() -> None:
    torch.manual_seed(0)
    model = CNN(channels=64, hidden=512).model()
    for name, fan_in in (("conv", 9), ("fc1", 64 * 9), ("fc2", 512)):
        assert model.get_parameter(f"{name}.weight").std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1), name
        assert not model.get_parameter(f"{name}.bias").any()


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"hidden": 0}])
def test_cnn_refuses(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cnn: channels >= 1 and hidden >= 1 expected, got"):
        CNN(**wrong)


def test_convolutions_are_he_normal() -> None:
    torch.manual_seed(0)
    for name, module in ResNet(depth=18).model().named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03), name


def test_padded_shortcut_strides_and_pads() -> None:
    shortcut = ResNet().model().get_submodule("layer2.0.downsample")
    x = torch.randn(2, 16, 8, 8)
    y = shortcut(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y.abs().sum() == y[:, 8:24].abs().sum()


def test_blocks_add_the_shortcut() -> None:
    block = ResNet().model().eval().get_submodule("layer1.0")
    with torch.no_grad():
        block.get_parameter("bn2.weight").zero_()  # the branch is silent
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x.relu())


def test_width_of_the_first_stage() -> None:
    assert ResNet(depth=18, width=8).model().get_submodule("fc").in_features == 64
    assert ResNet(width=4).model().get_submodule("fc").in_features == 16


@pytest.mark.parametrize("wrong", [{"depth": 52}, {"depth": 19}, {"width": -1}, {"outputs": 9}])
def test_resnet_refuses(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be .*, got {next(iter(wrong.values()))}"):
        ResNet(**wrong)  # type: ignore[arg-type]


def test_bottlenecks_have_the_shapes_of_the_paper() -> None:
    """Table 1 of the paper, 50 layers, the second stage: 1 x 1, 128; 3 x 3, 128 (stride 2); 1 x 1, 512."""
    block = ResNet(depth=50, dataset="cifar10").model().get_submodule("layer2.0")
    shapes = {name: tuple(p.shape) for name, p in block.named_parameters() if "conv" in name or "downsample.0" in name}
    assert shapes == {
        "conv1.weight": (128, 256, 1, 1),
        "conv2.weight": (128, 128, 3, 3),
        "conv3.weight": (512, 128, 1, 1),
        "downsample.0.weight": (512, 256, 1, 1),
    }
    assert [block.get_submodule(f"conv{k}").stride for k in (1, 2, 3)] == [(1, 1), (2, 2), (1, 1)]


def test_bottlenecks_add_the_shortcut() -> None:
    block = ResNet(depth=50, width=2).model().eval().get_submodule("layer1.1")
    with torch.no_grad():
        block.get_parameter("bn3.weight").zero_()  # the branch is silent
    x = torch.randn(2, 8, 8, 8)
    assert torch.equal(block(x), x.relu())


def test_more_outputs_than_classes() -> None:
    problem = ResNet(depth=8, width=4, outputs=1000)
    digits = problem.data(None)
    with torch.no_grad():
        assert fresh(problem)(digits.test_inputs[:2]).shape == (2, 1000)
    assert digits.train_targets.max() == 9


# Convolutions 9,220,480 with their biases (table 1, column A, of arXiv:1409.1556 for 3 channels), 5,504 in BatchNorm
# and 5,130 in the last layer; with BatchNorm as widely published for CIFAR-10.
@pytest.mark.parametrize(("batchnorm", "size"), [(True, 9_231_114), (False, 9_225_610)])
def test_vgg_11_has_the_published_size(batchnorm: bool, size: int) -> None:
    assert parameters(VGG(dataset="cifar10", batchnorm=batchnorm)) == size


@pytest.mark.parametrize(
    ("dataset", "shape"), [("cifar100", (3, 32, 32)), ("mnist", (1, 28, 28)), ("digits", (1, 8, 8))]
)
@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_shrinks_images_to_one_pixel(dataset: str, shape: tuple[int, ...], depth: int) -> None:
    model = VGG(depth=depth, dataset=dataset, width=2).model().eval()
    layers = [module for module in model.modules() if isinstance(module, COVERED)]
    assert len(layers) == depth - 2  # one fully connected layer of the paper's three
    assert isinstance(layers[-1], nn.Linear)
    assert layers[-1].in_features == 16
    with torch.no_grad():
        outputs = model(torch.randn(2, *data.info(dataset).shape))
    assert outputs.shape == (2, 100 if dataset == "cifar100" else 10)


@pytest.mark.parametrize("dataset", ["cifar10", "mnist", "digits"])
def test_every_weight_of_vgg_sees_a_pixel(dataset: str) -> None:
    model, sizes = VGG(dataset=dataset, width=2).model().eval(), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[-1]))
    with torch.no_grad():
        model(torch.randn(1, *data.info(dataset).shape))
    assert len(sizes) == 8
    assert min(sizes) >= 2


@pytest.mark.parametrize("wrong", [{"depth": 12}, {"width": -1}])
def test_vgg_refuses(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be .*, got {next(iter(wrong.values()))}"):
        VGG(**wrong)  # type: ignore[arg-type]


def test_transformer_of_fngd_has_the_size_of_the_original() -> None:
    """Base model of arXiv:1706.03762, table 3: 6 layers of 4 d^2 + 2 d h (encoder) and 8 d^2 + 2 d h (decoder)."""
    problem = Transformer(task="multi30k", width=512, hidden=2048, heads=8, depth=6)
    d, h, tokens = 512, 2048, 1000
    attention, feed, norm = 4 * d * d, 2 * d * h + d + h, 2 * d
    layers = 6 * (attention + feed + 2 * norm) + 6 * (2 * attention + feed + 3 * norm)
    assert parameters(problem) == layers + 2 * (tokens + 2) * d + tokens * d


def test_transformer_completes_digits() -> None:
    digits = Transformer().data(None)
    inputs, targets = digits.train_inputs, digits.train_targets
    images = Transformer(length=32).data(None)
    assert inputs.shape == (1437, 16)
    assert targets.min() >= 0
    assert targets.max() < GREY_LEVELS
    assert torch.equal(inputs[:, 9:], targets[:, :-1])
    assert set(inputs[:, 8].tolist()) == {GREY_LEVELS}
    assert torch.equal(inputs[:, :8], images.train_inputs[:, 24:32])
    assert torch.equal(targets, images.train_targets[:, :8])


@pytest.fixture
def attentive() -> tuple[nn.Module, Tensor]:
    """A network in float64 and inputs whose first sample ends in filling."""
    problem = Transformer(length=4, depth=2)
    inputs = problem.data(None).test_inputs[:3].clone()
    inputs[0, 2:4] = GREY_LEVELS + 1
    return fresh(problem).double(), inputs


def test_decoder_does_not_see_the_future(attentive: tuple[nn.Module, Tensor]) -> None:
    model, inputs = attentive
    other = inputs.clone()
    other[:, 6:] = (other[:, 6:] + 1) % GREY_LEVELS
    with torch.no_grad():
        before, after = model(inputs), model(other)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2:], after[:, 2:])


def test_attention_skips_what_fills_up_the_source(attentive: tuple[nn.Module, Tensor]) -> None:
    model, inputs = attentive
    with torch.no_grad():
        before = model(inputs)
        model.get_parameter("source.weight")[GREY_LEVELS + 1] += 1.0
        after = model(inputs)
        model.get_parameter("source.weight")[inputs[0, 0]] += 1.0
        assert not torch.allclose(model(inputs)[0], before[0])
    assert torch.equal(before, after)


def test_attention_is_that_of_torch(attentive: tuple[nn.Module, Tensor]) -> None:
    model, _ = attentive
    attention = model.get_submodule("decoder.0.cross")
    x, memory = torch.randn(3, 4, 16).double(), torch.randn(3, 5, 16).double()
    unseen = torch.tensor([False, False, False, True, True]).expand(3, 5)
    theirs = nn.MultiheadAttention(16, 2, bias=False, batch_first=True).double()
    names = ("query", "key", "value")
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([attention.get_parameter(f"{name}.weight") for name in names]))
        theirs.out_proj.weight.copy_(attention.get_parameter("out.weight"))
        expected, _ = theirs(x, memory, memory, key_padding_mask=unseen, need_weights=False)
        torch.testing.assert_close(attention(x, memory, unseen[:, None, None]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, in its derivatives
def test_transformer_has_a_forward_mode_derivative(attentive: tuple[nn.Module, Tensor]) -> None:
    model, inputs = attentive
    names = dict(model.named_parameters())
    direction = {name: torch.randn_like(p) for name, p in names.items()}
    forward = torch.func.jvp(lambda p: torch.func.functional_call(model, p, (inputs,)), (names,), (direction,))[1]
    cotangent = torch.randn_like(forward)
    backward = torch.autograd.grad((model(inputs) * cotangent).sum(), list(names.values()))
    pulled = sum((g * direction[name]).sum() for name, g in zip(names, backward, strict=True))
    assert (forward * cotangent).sum().item() == pytest.approx(pulled.item(), rel=1e-10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": "wmt"},
        {"task": "wmt14", "vocabulary": 1},
        {"width": 15},
        {"heads": 3},
        {"depth": 0},
        {"length": 33},
        {"vocabulary": 20},
        {"task": "multi30k", "vocabulary": 2},
    ],
)
def test_transformer_refuses(wrong: dict[str, int | str]) -> None:
    with pytest.raises(ValueError, match=rf"transformer: .*{list(wrong)[-1]}") as caught:
        Transformer(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_layers_of_a_chain_grow_alike(layer: str) -> None:
    """Every hidden layer has width inputs (times the kernel, and the bias) and width outputs."""
    chain = cb.problem("chain", width=6, depth=3, layer=layer, samples=4)
    data = chain.data(None)
    *hidden, head = cb.Instance(chain.model(), data.train_inputs, data.train_targets).sizes.values()
    kernel, positions = (9, 9) if layer == "conv2d" else (0, 1)
    assert [tuple(size) for size in hidden] == [(1, 6, 6 * (kernel or 1) + 1, positions, kernel)] * 3
    assert tuple(head) == (1, 4, 7, 1, 0)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"size": 0}, {"depth": -1}])
def test_chain_refuses(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="width >= 1, size >= 1 and depth >= 0 expected, got"):
        cb.problem("chain", **wrong)
