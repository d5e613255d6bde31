"""Architectures of transformers by name: what each predicts, its configuration, and what is refused or skipped."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

import curvbench as cb
from curvbench.data import stories
from curvbench.instance.likelihood import IGNORED
from curvbench.problems.hf import ENDINGS, HF, settings
from curvbench.registry import parse_problem, selector
from curvbench.spec import Skip

with_library = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs pip install 'curvbench[hf]'"
)
SMALL = "hidden_size=8 intermediate_size=8 num_hidden_layers=1 num_attention_heads=2"


def test_a_configuration_is_read_from_text() -> None:
    read = settings("n_embd=16 rate=0.5 depths=1/2 act=relu tie=false size=none")
    assert read == {"n_embd": 16, "rate": 0.5, "depths": [1, 2], "act": "relu", "tie": False, "size": None}
    with pytest.raises(ValueError, match=r"hf: config must be key=value with spaces between them, got 'n_embd'$"):
        HF(config="n_embd")


def test_it_is_written_on_a_command_line() -> None:
    problem = HF(architecture="BertForMaskedLM", config=SMALL)
    assert parse_problem(selector(problem)) == problem


@pytest.mark.parametrize("wrong", [{"architecture": "BertModel"}, {"vocabulary": 4}, {"tokens": 0}])
def test_fields_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    ((field, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"hf: .*{field}.* got .*{value}"):
        HF(**wrong)


def test_without_the_extra_it_is_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(Skip, match=r"hf needs transformers: pip install 'curvbench\[hf\]'"):
        HF().model()


@pytest.mark.parametrize("architecture", [f"Any{ending}" for ending in ENDINGS])
def test_inputs_and_targets_follow_from_the_name(architecture: str) -> None:
    problem = HF(architecture=architecture, tokens=6)
    data = problem.data(None)
    inputs, targets = data.train_inputs, data.train_targets
    if problem.predicts == "image":
        assert inputs.shape[1:] == (1, 8, 8)
    elif problem.predicts == "pair":
        assert inputs.shape[1] == 12 and (inputs[:, 6] == stories.BEGIN).all()
        assert torch.equal(inputs[:, 7:], targets[:, :-1])
    elif problem.predicts == "masked":
        counts = targets != IGNORED
        assert torch.equal(counts, inputs == stories.UNKNOWN) and counts.any(1).all() and not counts.all(1).any()
        assert torch.equal(torch.where(counts, targets, inputs), stories.rows(48, 6)[0])
    else:
        assert torch.equal(inputs, stories.rows(48, 6)[0])
        assert torch.equal(targets if targets.ndim == 1 else targets[:, -1], stories.rows(48, 7)[0][:, -1])


@with_library
def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a model of transformers 5.*, got 'GPT3LMHeadModel'$"):
        HF(architecture="GPT3LMHeadModel").model()


@with_library
def test_a_field_that_the_configuration_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="config must have fields of GPT2Config, got 'n_embed': leave it out"):
        HF(config="n_embed=16").model()


@with_library
def test_the_configuration_has_the_fields_and_what_follows_from_the_data() -> None:
    config = HF(vocabulary=20).model().get_submodule("inner").config
    assert (config.n_embd, config.n_layer, config.vocab_size, config.eos_token_id) == (16, 1, 20, stories.END)


@with_library
def test_the_model_is_the_library_s_with_the_same_draws() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    problem = HF()
    torch.manual_seed(0)
    ours = problem.model().eval()
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=48)).eval()
    tokens = problem.data(None).test_inputs[:3]
    with torch.no_grad():
        assert torch.equal(ours(tokens), theirs(tokens).logits)


@with_library
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GemmaForCausalLM"])
def test_norms_by_root_mean_squares_keep_their_outputs(architecture: str) -> None:
    """In float32 the norms of torch are those of the library, whose scale may begin at 1 or at 0."""
    import transformers

    fields = settings(f"{SMALL} num_key_value_heads=1 head_dim=4")
    problem = HF(architecture=architecture, config=f"{SMALL} num_key_value_heads=1 head_dim=4")
    torch.manual_seed(0)
    ours = problem.model().eval()
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    theirs = kind(kind.config_class(**fields, vocab_size=48, pad_token_id=0)).eval()
    norms = {type(module) for module in ours.modules() if "RMSNorm" in type(module).__name__}
    assert (norms == {nn.RMSNorm}) == (architecture == "LlamaForCausalLM")
    tokens = problem.data(None).test_inputs[:3]
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits)


@with_library
def test_a_sequence_has_one_loss_term() -> None:
    problem = cb.problem("hf", architecture="GPT2ForSequenceClassification", samples=4)
    data = problem.data(None)
    torch.manual_seed(0)
    instance = cb.Instance(problem.model().eval(), data.train_inputs[:4], data.train_targets[:4])
    assert instance.terms == 4 and instance.classes == 48
