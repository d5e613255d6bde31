"""A model of transformers: `curvbench measure my_language_model.py:my_language_model`.

It needs `pip install 'curvbench[hf]'`. Random weights stand for those of `from_pretrained`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification


def my_language_model() -> dict[str, Any]:
    """Model and batch; called once, with torch seeded. Padded tokens are masked, as a tokenizer's batch has them."""
    config = BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    config.num_labels = 3
    tokens, lengths = torch.randint(5, 99, (16, 12)), torch.randint(4, 13, (16,))
    mask = (torch.arange(12) < lengths[:, None]).long()
    inputs = {"input_ids": tokens * mask, "attention_mask": mask}
    return {"model": BertForSequenceClassification(config), "inputs": inputs, "targets": torch.randint(3, (16,))}
