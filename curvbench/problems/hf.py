"""Any architecture of the library transformers, with a configuration of one's own and random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from curvbench import data
from curvbench.data import stories
from curvbench.instance.likelihood import IGNORED
from curvbench.spec import Dataset, Problem, Recipe, Skip

MASKED = 4  # one in so many tokens is hidden from a masked language model
ENDINGS = {
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForMaskedLM": "masked",
    "ForConditionalGeneration": "pair",
    "ForSeq2SeqLM": "pair",
    "ForSequenceClassification": "sequence",
    "ForImageClassification": "image",
}


@dataclass(frozen=True)
class HF(Problem):
    """Any architecture of transformers by its name and a configuration, with random weights.

    The end of the architecture's name decides what the model predicts. ForCausalLM and LMHeadModel: the word after each
    token of embedded sentences. ForMaskedLM: every fourth token, which is hidden. ForSequenceClassification: the word
    after the last token. ForConditionalGeneration and ForSeq2SeqLM: the words after those that were read, as many
    again. ForImageClassification: the class of one of scikit-learn's digits, 8 x 8 pixels.

    ``architecture``: name of a class of transformers. ``config``: fields of its configuration as key=value with spaces
    between them, several numbers of one field with slashes. ``vocabulary``: number of words, C; the sentences have
    about 40, and more classes never occur. ``tokens``: tokens of a sample.

    Fields that ``config`` leaves out have the library's defaults, which are large. Dropout is the library's.
    """

    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.05, batch=32)

    architecture: str = "GPT2LMHeadModel"
    config: str = "n_embd=16 n_layer=1 n_head=2 n_positions=16"
    vocabulary: int = 48
    tokens: int = 8
    mc_samples: int = 0
    samples: int = 8
    epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        settings(self.config)
        if not any(self.architecture.endswith(ending) for ending in ENDINGS):
            raise ValueError(f"hf: architecture must end in one of {', '.join(ENDINGS)}, got {self.architecture!r}")
        if self.vocabulary < stories.LEAST_VOCABULARY or self.tokens < 1:
            came = f"vocabulary={self.vocabulary}, tokens={self.tokens}"
            raise ValueError(f"hf: vocabulary >= {stories.LEAST_VOCABULARY} and tokens >= 1 expected, got {came}")

    @property
    def predicts(self) -> str:
        """What the model predicts, a value of ``ENDINGS``."""
        return next(task for ending, task in ENDINGS.items() if self.architecture.endswith(ending))

    def model(self) -> nn.Module:
        """Tokens (N, T), or two texts (N, 2 T), or images (N, 1, 8, 8) -> logits (N, T, C) or (N, C)."""
        architecture = _architecture(self.architecture)
        model = architecture(_config(architecture.config_class, settings(self.config), self._defaults))
        _compute_in_own_dtype(model)
        return Network(model, self.predicts)

    def data(self, root: Path | None) -> Dataset:
        """Embedded sentences (see ``curvbench.data.stories``), or digits."""
        return DATA[self.predicts](self.vocabulary, self.tokens)

    @property
    def _defaults(self) -> dict[str, Any]:
        """The fields that follow from the data."""
        if self.predicts == "image":
            info = data.info("digits")
            return {"image_size": info.size, "num_channels": info.channels, "num_labels": info.classes}
        special = {"pad_token_id": stories.FILLING, "bos_token_id": stories.BEGIN, "eos_token_id": stories.END}
        sizes = {"vocab_size": self.vocabulary, "num_labels": self.vocabulary}
        return {**special, **sizes, "decoder_start_token_id": stories.BEGIN, "use_cache": False}


class Network(nn.Module):
    """A model of the library on one tensor, which gives logits alone."""

    def __init__(self, model: Any, predicts: str) -> None:
        super().__init__()
        self.inner, self.predicts = model, predicts

    def forward(self, x: Tensor) -> Tensor:
        """(N, T), (N, 2 T) or (N, 1, 8, 8) -> (N, T, C) or (N, C)."""
        outputs: Tensor = self.inner(**self._keywords(x)).logits
        return outputs

    def _keywords(self, x: Tensor) -> dict[str, Tensor]:
        if self.predicts == "image":
            return {"pixel_values": x}
        if self.predicts != "pair":
            return {"input_ids": x, "attention_mask": torch.ones_like(x)}
        read, written = x.chunk(2, dim=1)
        return {"input_ids": read, "attention_mask": torch.ones_like(read), "decoder_input_ids": written}


def settings(text: str) -> dict[str, Any]:
    """The fields in ``key=value key=value``; raises ValueError for a word that is none of these."""
    fields = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise ValueError(f"hf: config must be key=value with spaces between them, got {word!r}")
        fields[key] = [_value(part) for part in value.split("/")] if "/" in value else _value(value)
    return fields


def _value(text: str) -> Any:
    """None, a truth value, a number, or else a text."""
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _architecture(name: str) -> Any:
    """The class of a name; raises Skip without the library, and ValueError if the library has no such class."""
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise Skip(f"hf needs {error.name}: pip install 'curvbench[hf]'") from error
    if getattr(found := getattr(library, name, None), "config_class", None) is None:
        raise ValueError(f"hf: architecture must be a model of transformers {library.__version__}, got {name!r}")
    return found


def _config(kind: Any, fields: dict[str, Any], defaults: Mapping[str, Any]) -> Any:
    """A configuration; raises ValueError for a field that its kind lacks, which the library would take as well."""
    plain = kind()
    if unknown := [key for key in fields if not hasattr(plain, key)]:
        raise ValueError(f"hf: config must have fields of {kind.__name__}, got {unknown[0]!r}: leave it out")
    return kind(**{**defaults, **fields})


def _compute_in_own_dtype(model: nn.Module) -> None:
    """Replace norms by root mean squares, which round to float32 in every dtype, by torch's.

    Norms whose scale begins at 0, because 1 is added to it, stay as they are.
    """
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm).__name__.endswith(("RMSNorm", "T5LayerNorm")) and norm.get_parameter("weight").all():
                setattr(parent, name, nn.RMSNorm(norm.get_parameter("weight").shape, _epsilon(norm)))


def _epsilon(norm: Any) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def _masked(vocabulary: int, tokens: int) -> Dataset:
    """Every fourth token is hidden, another one in each row; the others are no loss term."""
    parts = []
    for rows in stories.rows(vocabulary, tokens):
        places = torch.arange(len(rows))[:, None] + torch.arange(tokens)
        hidden = places % min(MASKED, tokens) == 0
        parts += [rows.masked_fill(hidden, stories.UNKNOWN), rows.masked_fill(~hidden, IGNORED)]
    return Dataset(*parts)


def _pair(vocabulary: int, tokens: int) -> Dataset:
    """What was read, then the decoder's tokens: the beginning and all words that it writes but the last."""
    parts = []
    for rows in stories.rows(vocabulary, 2 * tokens):
        begin = torch.full((len(rows), 1), stories.BEGIN)
        parts += [torch.cat([rows[:, :tokens], begin, rows[:, tokens:-1]], dim=1), rows[:, tokens:]]
    return Dataset(*parts)


def _sequence(vocabulary: int, tokens: int) -> Dataset:
    train, test = stories.rows(vocabulary, tokens + 1)
    return Dataset(train[:, :-1], train[:, -1], test[:, :-1], test[:, -1])


DATA: Mapping[str, Callable[[int, int], Dataset]] = {
    "causal": stories.continued,
    "masked": _masked,
    "pair": _pair,
    "sequence": _sequence,
    "image": lambda vocabulary, tokens: data.load("digits"),
}
