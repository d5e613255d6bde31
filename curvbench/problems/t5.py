"""T5 for summaries, with all weights trained or with adapters of low rank.

Sources: C. Raffel et al., JMLR 2020 (arXiv:1910.10683), "small"; E. Hu et al., "LoRA", ICLR 2022 (arXiv:2106.09685).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvbench.data import documents
from curvbench.data.scores import rouge
from curvbench.data.sentences import Texts
from curvbench.spec import Dataset, Problem, Recipe, Skip

# Fields of T5Config that differ from the published configuration "small".
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4},
    "small": {},
}
VOCABULARY = {"tiny": 128, "small": 32_128}
DECODED = 64  # documents that are summarised in one batch


@dataclass(frozen=True)
class T5(Problem):
    """T5 for summaries, with random weights instead of the published ones, and with a tokenizer of the data.

    ``size``: tiny, or small with the 60,506,624 parameters of T5-small. ``task``: tiny (embedded sentences), scitldr or
    xsum, see ``curvbench.data.documents``. ``mode``: full trains all weights; lora trains adapters beside queries and
    values and freezes all other weights. ``rank``: rank of the adapters. ``source``: maximum number of tokens of a
    document. ``target``: maximum number of tokens of a summary. ``vocabulary``: number of different tokens; 0 takes 128
    for tiny and 32,128 for small.

    The embedding is the last layer too, up to a constant. Dropout is T5's 0.1.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.05, batch=32)

    size: Literal["tiny", "small"] = "tiny"
    task: Literal["tiny", "scitldr", "xsum"] = "tiny"
    mode: Literal["full", "lora"] = "full"
    rank: int = 8
    source: int = 32
    target: int = 12
    vocabulary: int = 0
    mc_samples: int = 8
    samples: int = 16
    epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or min(self.source, self.target) < 2:
            came = f"rank={self.rank}, source={self.source}, target={self.target}"
            raise ValueError(f"t5: rank >= 1, source >= 2 and target >= 2 expected, got {came}")
        if self.classes < documents.LEAST_VOCABULARY:
            raise ValueError(
                f"t5: vocabulary must be at least {documents.LEAST_VOCABULARY}, or 0, got {self.vocabulary}"
            )

    @property
    def classes(self) -> int:
        """The number of classes, C."""
        return self.vocabulary or VOCABULARY[self.size]

    def model(self) -> nn.Module:
        """Tokens (N, source + target) of a document and of the decoder -> logits (N, target, C)."""
        return Network(_drawn(self.classes, SIZES[self.size], self.rank if self.mode == "lora" else 0), self.source)

    def data(self, root: Path | None) -> Dataset:
        """Inputs (N, source + target) and targets (N, target), both int64; see ``curvbench.data.documents``."""
        return documents.summarisation(self.task, root, self.classes, self.source, self.target)

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the ROUGE scores of summaries."""
        return "test.rouge1", "test.rouge2", "test.rougeL"

    def score(self, model: nn.Module, dataset: Dataset) -> dict[str, float]:
        """ROUGE of greedy summaries of the test part."""
        assert isinstance(model, Network) and isinstance(dataset, Texts)
        summaries = model.summarise(dataset.test_inputs[:, : self.source], self.target)
        texts = [dataset.decode(ids) for ids in summaries.tolist()]
        return {f"test.{kind}": value for kind, value in rouge(texts, dataset.references).items()}


class Network(nn.Module):
    """The library's T5 on one tensor of tokens."""

    def __init__(self, t5: Any, source: int) -> None:
        super().__init__()
        self.t5, self.source = t5, source

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, source + target) int64 -> (N, target, C)."""
        document, summary = tokens[:, : self.source], tokens[:, self.source :]
        mask = (document != documents.PAD).long()
        outputs: Tensor = self.t5(
            input_ids=document, attention_mask=mask, decoder_input_ids=summary, use_cache=False
        ).logits
        return outputs

    @torch.no_grad()
    def summarise(self, texts: Tensor, length: int) -> Tensor:
        """Greedy summaries, on the model's device: (N, source) -> (N, length)."""
        summaries = []
        for part in texts.to(self.t5.device).split(DECODED):
            mask = (part != documents.PAD).long()
            tokens = self.t5.generate(part, attention_mask=mask, max_new_tokens=length, do_sample=False)[:, 1:]
            summaries.append(F.pad(tokens, (0, length - tokens.shape[1]), value=documents.PAD))
        return torch.cat(summaries)


def _drawn(classes: int, size: dict[str, Any], rank: int) -> Any:
    """A T5 with random weights, and with adapters if ``rank`` is not 0."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from transformers import T5Config, T5ForConditionalGeneration
    except ImportError as error:
        raise Skip(f"t5 needs {error.name}: pip install 'curvbench[text]'") from error
    settings: dict[str, Any] = {"vocab_size": classes, "decoder_start_token_id": documents.PAD, **size}
    config = T5Config(**settings)
    t5 = T5ForConditionalGeneration(config)
    _compute_in_own_dtype(t5, config.layer_norm_epsilon)
    if rank:
        inject_adapter_in_model(LoraConfig(r=rank, target_modules=["q", "v"]), t5)
    return t5


def _compute_in_own_dtype(t5: nn.Module, epsilon: float) -> None:
    """Replace T5's own norm, which rounds to float32 in every dtype, by torch's norm."""
    for parent in list(t5.modules()):
        for name, module in parent.named_children():
            if type(module).__name__ == "T5LayerNorm":
                setattr(parent, name, nn.RMSNorm(module.weight.shape, epsilon))
