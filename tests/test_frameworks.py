"""NaturalGradient in other people's training loops, each against a loop of one's own in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

import curvbench as cb

pytestmark = pytest.mark.filterwarnings("ignore")  # of those frameworks
ROUNDING = 1e-10  # of steps whose statistics come from differently ordered sums


def trainer(model: nn.Module) -> cb.NaturalGradient:
    return cb.NaturalGradient(model, cb.probe("kfac", damping=0.1), 0.1, 0.9, 0.01, kl_clip=0.1)


def vectors(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 5, generator=generator).double(), torch.randint(3, (6,), generator=generator))
        for _ in range(count)
    ]


def own_loop(model: nn.Module, data: list[tuple[Tensor, Tensor]], parts: int = 1) -> None:
    """The steps of ``forward``, which other tests hold against oracles; ``parts`` batches make a step."""
    optimizer = trainer(model)
    for start in range(0, len(data), parts):
        optimizer.zero_grad()
        for x, y in data[start : start + parts]:
            (F.cross_entropy(optimizer.forward(x, y), y) / parts).backward()
        optimizer.step()


def near(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(float((a - b).detach().abs().max()) <= ROUNDING for a, b in pairs)


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    first = mlp(5, 6, 3).double()
    return first, copy.deepcopy(first)


# --- transformers -----------------------------------------------------------------------------------------


class Padded(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Sentences with padding, whose tokens have classes; three in a row have 14 tokens."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.ids = torch.randint(11, (12, 6), generator=generator)
        self.mask = (torch.arange(6) < torch.tensor([[3], [6], [5]]).repeat(4, 1)).long()
        self.labels = torch.randint(3, (12, 6), generator=generator).masked_fill(self.mask == 0, -100)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        names = ("input_ids", self.ids), ("attention_mask", self.mask), ("labels", self.labels)
        return {name: tensor[number] for name, tensor in names}


class Logits(nn.Module):
    """A model of transformers as one that returns a tensor."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.inner(input_ids=ids, attention_mask=mask).logits
        return logits


def tagger() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**sizes, **rates, intermediate_size=16, max_position_embeddings=8)
    model: nn.Module = transformers.BertForTokenClassification(config)
    return model.double()


def test_the_trainer_of_transformers_makes_the_steps(tmp_path: Path) -> None:
    """Padded batches, a loss inside of the model, and two batches per step."""
    transformers = pytest.importorskip("transformers")

    class InOrder(transformers.Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    model, judge = tagger(), tagger()
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        **{"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"},
    )
    InOrder(model, arguments, train_dataset=Padded(), optimizers=(trainer(model), None)).train()
    data, optimizer = Padded(), trainer(own := Logits(judge))
    for start in (0, 6, 0, 6):
        optimizer.zero_grad()
        for rows in (slice(start, start + 3), slice(start + 3, start + 6)):
            y = data.labels[rows]
            outputs = optimizer.forward((data.ids[rows], data.mask[rows]), y)
            F.cross_entropy(outputs.flatten(0, 1), y.flatten()).backward()  # which the Trainer does not divide either
        optimizer.step()
    assert near(model, own)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_of_transformers_make_the_steps(reentrant: bool) -> None:
    """They read whether they train, so that statistics make a pass of their own, without checkpoints."""
    data, models = Padded(), [tagger(), tagger()]
    models[0].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for model in models:
        optimizer = trainer(model.train())
        for _ in range(3):
            optimizer.zero_grad()
            model(data.ids, attention_mask=data.mask, labels=data.labels).loss.backward()
            optimizer.step()
    assert near(*models)


def test_low_rank_adapters_train_alone() -> None:
    peft = pytest.importorskip("peft")
    data, models = Padded(), [tagger(), tagger()]
    for model, plain in zip(models, (True, False), strict=True):
        torch.manual_seed(1)
        config = peft.LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights="gaussian")
        adapted = peft.get_peft_model(model, config).double()
        before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
        whole = Logits(adapted)
        optimizer = trainer(adapted if plain else whole)
        for _ in range(3):
            optimizer.zero_grad()
            if plain:
                outputs = adapted(input_ids=data.ids, attention_mask=data.mask).logits
            else:
                outputs = optimizer.forward((data.ids, data.mask), data.labels)
            F.cross_entropy(outputs.flatten(0, 1), data.labels.flatten()).backward()
            optimizer.step()
        moved = {name for name, p in adapted.named_parameters() if not torch.equal(before[name], p)}
        assert moved == {name for name, p in adapted.named_parameters() if p.requires_grad} != set(before)
    assert near(*models)


# --- accelerate and lightning -----------------------------------------------------------------------------


def test_accelerate_makes_the_steps() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.GradientState._reset_state()  # the Trainer of transformers leaves its own
    first, second = pair()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(first, trainer(first))
    for x, y in vectors():
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
    own_loop(second, vectors(), parts=2)
    assert near(first, second)


def test_lightning_makes_the_steps(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return trainer(self.net)

    first, second = pair()
    rows = TensorDataset(*(torch.cat(parts) for parts in zip(*vectors(), strict=True)))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings: dict[str, Any] = {"accelerator": "cpu", "precision": "64-true", "accumulate_grad_batches": 2}
    loop = lightning.Trainer(max_epochs=1, default_root_dir=tmp_path, **settings, **quiet)
    loop.fit(Module(first), DataLoader(rows, batch_size=6))
    own_loop(second, vectors(), parts=2)
    assert near(first, second)
