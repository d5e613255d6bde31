"""Architectures of Hugging Face, as small as their configurations allow, randomly initialised.

Their root-mean-square norms and T5's cast to float32; where nothing else does, ``in_own_precision`` puts the same norm
without the cast in their place, so that the comparison keeps all its digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.case import Case, Net, Problem, classified, integers, normal

WORDS, WIDTH = 11, 8
SINGLE = 2e-5  # of models that compute in float32 inside

LLAMA = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": 10,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = LLAMA | {"num_key_value_heads": 1}
BERT = LLAMA | {"type_vocab_size": 2}
GPT2 = {
    "vocab_size": WORDS,
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {
    "vocab_size": WORDS,
    "d_model": WIDTH,
    "d_kv": 4,
    "d_ff": 10,
    "num_layers": 1,
    "num_heads": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": WORDS,
    "d_model": WIDTH,
    **{
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 10))
    },
    "max_position_embeddings": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3}
VIT = IMAGE | {"hidden_size": WIDTH, "intermediate_size": 10, "num_hidden_layers": 1, "num_attention_heads": 2}


class Norm(nn.Module):
    """A root-mean-square norm in the precision of its inputs; ``offset`` is added to the scale."""

    def __init__(self, weight: nn.Parameter, eps: float, offset: float) -> None:
        super().__init__()
        self.weight, self.eps, self.offset = weight, eps, offset

    def forward(self, x: Tensor) -> Tensor:
        return (self.offset + self.weight) * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


def in_own_precision(model: nn.Module) -> nn.Module:
    """The model with its norms replaced by ``Norm``, which hold the same parameters."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith(("RMSNorm", "T5LayerNorm")):
                eps = getattr(child, "variance_epsilon", None) or child.eps
                offset = 1.0 if "Gemma" in type(child).__name__ else 0.0
                setattr(parent, name, Norm(child.weight, eps, offset))
    return model


def made(architecture: str, config: str, **values: Any) -> nn.Module:
    """A model of transformers by the names of its class and of its configuration's."""
    import transformers

    return in_own_precision(getattr(transformers, architecture)(getattr(transformers, config)(**values)))


def asked(
    model: nn.Module, output: Callable[[Any], Tensor] = lambda returned: returned.logits, **inputs: Tensor
) -> Problem:
    """A model that is called by keywords and one of whose outputs is taken."""
    net = Net(lambda m, **given: output(m.model(**given)), model=model)
    return classified(net, **inputs)


def words(tokens: int = 3) -> Tensor:
    """Sentences (3, tokens) without the words of special meaning."""
    return 3 + integers(WORDS - 3, 3, tokens)


def padded(left: bool = False) -> Tensor:
    """A mask (3, 3) of sentences of 3, 2 and 3 words."""
    mask = torch.ones(3, 3, dtype=torch.int64)
    mask[1, 0 if left else -1] = 0
    return mask


def causal(architecture: str, values: dict[str, Any], left: bool = True, **more: Any) -> Problem:
    """A language model on padded sentences; ``left``: on the left, as decoders take it."""
    model = made(f"{architecture}ForCausalLM", f"{architecture}Config", **values, use_cache=False, **more)
    return asked(model, input_ids=words(), attention_mask=padded(left))


def sequence(architecture: str, config: str, values: dict[str, Any], **more: Any) -> Problem:
    """An encoder on padded sentences."""
    return asked(made(architecture, config, **values, **more), input_ids=words(), attention_mask=padded())


def translated(architecture: str, config: str, values: dict[str, Any], **more: Any) -> Problem:
    """An encoder and a decoder."""
    model = made(architecture, config, **values, **more)
    return asked(model, input_ids=words(), attention_mask=padded(), decoder_input_ids=words(2))


def seen(architecture: str, values: dict[str, Any], size: int = 8, **more: Any) -> Problem:
    """A classifier of images."""
    model = made(f"{architecture}ForImageClassification", f"{architecture}Config", **values, **more)
    return asked(model, pixel_values=normal(3, values.get("num_channels", 1), size, size))


def spoken(architecture: str, **more: Any) -> Problem:
    """A recogniser of sound: two convolutions and one layer of attention."""
    values = {
        "hidden_size": WIDTH,
        "intermediate_size": 10,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 4,
    }
    values |= {"conv_dim": (4, 4), "conv_stride": (4, 2), "conv_kernel": (8, 3), "num_feat_extract_layers": 2}
    values |= {
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "pad_token_id": 0,
        "mask_time_prob": 0.0,
    }
    return asked(made(f"{architecture}ForCTC", f"{architecture}Config", **values, **more), input_values=normal(3, 40))


def whisper() -> Problem:
    """Spectra in, words out; the head is the decoder's embedding."""
    values = BART | {"num_mel_bins": 4, "max_source_positions": 4, "max_target_positions": 8, "suppress_tokens": None}
    model = made("WhisperForConditionalGeneration", "WhisperConfig", **values)
    return asked(model, input_features=normal(3, 4, 8), decoder_input_ids=words(2))


def segmented() -> Problem:
    """Classes of pixels, which come as (N, C, H, W) and are compared as (N, H W, C)."""
    values = {"num_channels": 1, "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [4, 8]}
    values |= {"num_attention_heads": [1, 2], "mlp_ratios": [1, 1], "patch_sizes": [3, 3], "strides": [2, 2]}
    model = made("SegformerForSemanticSegmentation", "SegformerConfig", **values, decoder_hidden_size=6, num_labels=3)
    return asked(model, lambda returned: returned.logits.flatten(2).mT, pixel_values=normal(3, 1, 8, 8))


def contrasted(architecture: str) -> Problem:
    """Images and sentences in pairs; each image's scores of all sentences of the batch."""
    import transformers

    text = BERT | {"eos_token_id": 2}
    config = {"text_config": text, "vision_config": VIT | {"num_hidden_layers": 1}, "projection_dim": 6}
    model = getattr(transformers, f"{architecture}Model")(getattr(transformers, f"{architecture}Config")(**config))
    given = {"input_ids": words(), "attention_mask": padded(), "pixel_values": normal(3, 1, 8, 8)}
    return asked(model, lambda returned: returned.logits_per_image, **given)


def windows(architecture: str, **more: Any) -> Problem:
    values = IMAGE | {
        "patch_size": 2,
        "embed_dim": 4,
        "depths": [2, 1],
        "num_heads": [1, 2],
        "window_size": 2,
        "mlp_ratio": 1.0,
    }
    return seen(architecture, values | more)


def adapted(method: str, base: Callable[[], nn.Module] | None = None, **values: Any) -> Problem:
    """A language model with adapters of peft; only they are trained."""
    import peft

    model = base() if base else made("LlamaForCausalLM", "LlamaConfig", **GROUPED)
    config = getattr(peft, f"{method}Config")(task_type="CAUSAL_LM", **values)
    return asked(peft.get_peft_model(model, config), input_ids=words(), attention_mask=padded(left=True))


def own_norm() -> Problem:
    """A Llama with the norm that casts to float32."""
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED))
    return asked(model, input_ids=words(), attention_mask=padded())


TARGETS = ["q_proj", "v_proj"]
MIXTURE = GROUPED | {"experts_implementation": "eager", "num_local_experts": 3, "num_experts_per_tok": 2}
BOTTLENECK = {"num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "num_labels": 3}

DECODERS = (
    Case("gpt2", lambda: sequence("GPT2LMHeadModel", "GPT2Config", GPT2)),
    Case("opt", lambda: causal("OPT", LLAMA | {"ffn_dim": 10, "word_embed_proj_dim": WIDTH})),
    Case(
        "bloom",
        lambda: sequence(
            "BloomForCausalLM", "BloomConfig", {"vocab_size": WORDS, "hidden_size": WIDTH, "n_layer": 1, "n_head": 2}
        ),
        tolerance=SINGLE,
    ),
    Case("gpt_neox", lambda: causal("GPTNeoX", LLAMA)),
    Case("falcon", lambda: causal("Falcon", LLAMA)),
    Case("phi", lambda: causal("Phi", GROUPED)),
    Case("llama_tied", lambda: causal("Llama", GROUPED, tie_word_embeddings=True)),
    Case("llama_with_its_own_norm", own_norm, tolerance=SINGLE),
    Case("llama_untied", lambda: causal("Llama", GROUPED, tie_word_embeddings=False)),
    Case("mistral_window", lambda: causal("Mistral", GROUPED, sliding_window=2)),
    Case("mixtral", lambda: causal("Mixtral", MIXTURE), tolerance=SINGLE),
    Case("qwen2", lambda: causal("Qwen2", GROUPED)),
    Case("qwen3", lambda: causal("Qwen3", GROUPED, head_dim=4, tie_word_embeddings=True)),
    Case(
        "qwen3_moe",
        lambda: causal("Qwen3Moe", MIXTURE, head_dim=4, num_experts=3, moe_intermediate_size=6),
        tolerance=SINGLE,
    ),
    Case("gemma", lambda: causal("Gemma", GROUPED, head_dim=4)),
    Case(
        "gemma2",
        lambda: sequence("Gemma2ForCausalLM", "Gemma2Config", GROUPED, head_dim=4, attn_implementation="eager"),
        tolerance=SINGLE,
    ),
    Case("gemma3", lambda: sequence("Gemma3ForCausalLM", "Gemma3TextConfig", GROUPED, head_dim=4)),
    Case("cohere", lambda: causal("Cohere", GROUPED), tolerance=SINGLE),
    Case("stablelm", lambda: causal("StableLm", GROUPED)),
    Case("olmo2", lambda: causal("Olmo2", GROUPED)),
    Case(
        "deepseek_v3",
        lambda: causal(
            "DeepseekV3",
            LLAMA | {"num_key_value_heads": 2},
            q_lora_rank=4,
            kv_lora_rank=4,
            experts_implementation="eager",
            qk_rope_head_dim=2,
            qk_nope_head_dim=2,
            v_head_dim=2,
            n_routed_experts=3,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=0,
            moe_intermediate_size=6,
        ),
        tolerance=SINGLE,
    ),
    Case("gpt_oss", lambda: causal("GptOss", MIXTURE, head_dim=4)),
    Case(
        "mamba",
        lambda: causal(
            "Mamba",
            {
                "vocab_size": WORDS,
                "hidden_size": 6,
                "state_size": 2,
                "num_hidden_layers": 1,
                "conv_kernel": 2,
                "expand": 1,
                "time_step_rank": 2,
            },
        ),
        tolerance=SINGLE,
    ),
    Case(
        "mamba2",
        lambda: causal(
            "Mamba2",
            {
                "vocab_size": WORDS,
                "hidden_size": 4,
                "state_size": 2,
                "num_hidden_layers": 1,
                "conv_kernel": 2,
                "expand": 2,
                "num_heads": 2,
                "head_dim": 4,
                "n_groups": 1,
                "chunk_size": 2,
            },
        ),
        tolerance=SINGLE,
    ),
    Case(
        "recurrent_gemma",
        lambda: causal(
            "RecurrentGemma",
            GROUPED | {"num_hidden_layers": 2},
            lru_width=8,
            block_types=["recurrent", "attention"],
            attention_window_size=4,
        ),
        tolerance=SINGLE,
    ),
    Case(
        "jamba",
        lambda: causal(
            "Jamba",
            MIXTURE | {"num_hidden_layers": 2},
            num_experts=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=2,
            mamba_d_conv=2,
            mamba_expand=1,
            mamba_dt_rank=2,
            use_mamba_kernels=False,
        ),
        tolerance=SINGLE,
    ),
    Case("granite", lambda: causal("Granite", GROUPED, residual_multiplier=0.5, logits_scaling=2.0)),
    Case(
        "lfm2",
        lambda: causal(
            "Lfm2",
            GROUPED | {"num_hidden_layers": 2},
            layer_types=["conv", "full_attention"],
            block_auto_adjust_ff_dim=False,
        ),
    ),
)

ENCODERS = (
    Case("bert_masked_words", lambda: sequence("BertForMaskedLM", "BertConfig", BERT)),
    Case("bert_classes", lambda: sequence("BertForSequenceClassification", "BertConfig", BERT, num_labels=3)),
    Case(
        "roberta",
        lambda: sequence(
            "RobertaForSequenceClassification", "RobertaConfig", BERT | {"max_position_embeddings": 12}, num_labels=3
        ),
    ),
    Case(
        "albert",
        lambda: sequence("AlbertForMaskedLM", "AlbertConfig", BERT | {"embedding_size": 4, "num_hidden_layers": 3}),
    ),
    Case(
        "distilbert",
        lambda: sequence(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            {
                "vocab_size": WORDS,
                "dim": WIDTH,
                "hidden_dim": 10,
                "n_layers": 1,
                "n_heads": 2,
                "max_position_embeddings": 8,
            },
            num_labels=3,
        ),
    ),
    Case(
        "electra_tokens",
        lambda: sequence("ElectraForTokenClassification", "ElectraConfig", BERT | {"embedding_size": 4}, num_labels=3),
    ),
    Case(
        "deberta_v2",
        lambda: sequence(
            "DebertaV2ForSequenceClassification",
            "DebertaV2Config",
            BERT
            | {
                "relative_attention": True,
                "position_buckets": 4,
                "pos_att_type": ["p2c", "c2p"],
                "share_att_key": False,
                "norm_rel_ebd": "layer_norm",
            },
            num_labels=3,
        ),
    ),
    Case(
        "mpnet",
        lambda: sequence(
            "MPNetForMaskedLM",
            "MPNetConfig",
            LLAMA | {"max_position_embeddings": 12, "relative_attention_num_buckets": 32},
        ),
    ),
    Case(
        "modernbert",
        lambda: sequence(
            "ModernBertForMaskedLM",
            "ModernBertConfig",
            LLAMA,
            global_attn_every_n_layers=1,
            local_attention=4,
            cls_token_id=1,
            sep_token_id=2,
        ),
        tolerance=SINGLE,
    ),
    Case(
        "fnet",
        lambda: asked(
            made("FNetForMaskedLM", "FNetConfig", **{**BERT, "max_position_embeddings": 8}), input_ids=words()
        ),
        left_out=frozenset({"model.fnet.pooler.dense.weight", "model.fnet.pooler.dense.bias"}),
    ),
    Case(
        "xlnet",
        lambda: asked(
            made("XLNetLMHeadModel", "XLNetConfig", vocab_size=WORDS, d_model=WIDTH, n_layer=1, n_head=2, d_inner=10),
            input_ids=words(),
        ),
        left_out=frozenset(
            {
                "model.transformer.mask_emb",
                "model.transformer.layer.0.rel_attn.r_s_bias",
                "model.transformer.layer.0.rel_attn.seg_embed",
            }
        ),
    ),
)

BOTH = (
    Case("t5", lambda: translated("T5ForConditionalGeneration", "T5Config", T5)),
    Case(
        "t5_gated",
        lambda: translated(
            "T5ForConditionalGeneration", "T5Config", T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
        ),
    ),
    Case("bart", lambda: translated("BartForConditionalGeneration", "BartConfig", BART)),
    Case("marian", lambda: translated("MarianMTModel", "MarianConfig", BART)),
    Case("pegasus", lambda: translated("PegasusForConditionalGeneration", "PegasusConfig", BART)),
    Case("whisper", whisper),
    Case("wav2vec2", lambda: spoken("Wav2Vec2")),
    Case("hubert_layer_norm", lambda: spoken("Hubert", feat_extract_norm="layer", do_stable_layer_norm=True)),
)

IMAGES = (
    Case("vit", lambda: seen("ViT", VIT)),
    Case("deit", lambda: seen("DeiT", VIT)),
    Case(
        "dinov2",
        lambda: seen("Dinov2", VIT | {"mlp_ratio": 1}),
        left_out=frozenset({"model.dinov2.embeddings.mask_token"}),
    ),
    Case("beit", lambda: seen("Beit", VIT | {"use_relative_position_bias": True, "use_mask_token": False})),
    Case("swin", lambda: windows("Swin")),
    Case("swin_v2", lambda: windows("Swinv2", depths=[1], num_heads=[2])),
    Case("convnext", lambda: seen("ConvNext", BOTTLENECK | {"patch_size": 2}, num_stages=2)),
    Case("convnext_v2", lambda: seen("ConvNextV2", BOTTLENECK | {"patch_size": 2}, num_stages=2)),
    Case("resnet", lambda: seen("ResNet", BOTTLENECK | {"layer_type": "basic"})),
    Case("regnet", lambda: seen("RegNet", BOTTLENECK | {"groups_width": 4, "layer_type": "x"})),
    Case(
        "poolformer",
        lambda: seen(
            "PoolFormer",
            {
                "num_channels": 1,
                "num_labels": 3,
                "depths": [1, 1],
                "hidden_sizes": [4, 8],
                "patch_sizes": [3, 3],
                "strides": [2, 2],
                "padding": [1, 1],
                "num_encoder_blocks": 2,
                "mlp_ratio": 1.0,
            },
        ),
    ),
    Case("segformer", segmented),
    Case("clip", lambda: contrasted("CLIP"), coupled=True),
    Case("siglip", lambda: contrasted("Siglip"), coupled=True),
)

ADAPTERS = (
    Case("peft_lora", lambda: adapted("Lora", r=2, target_modules=TARGETS)),
    Case(
        "peft_lora_gpt2",
        lambda: adapted(
            "Lora",
            lambda: made("GPT2LMHeadModel", "GPT2Config", **GPT2),
            r=2,
            target_modules=["c_attn"],
            fan_in_fan_out=True,
        ),
    ),
    Case("peft_lora_embedding", lambda: adapted("Lora", r=2, target_modules=["embed_tokens", "lm_head"])),
    Case(
        "peft_lora_biases",
        lambda: adapted(
            "Lora",
            lambda: made("GPT2LMHeadModel", "GPT2Config", **GPT2),
            r=2,
            bias="all",
            target_modules=["c_attn"],
            fan_in_fan_out=True,
        ),
    ),
    Case("peft_dora", lambda: adapted("Lora", r=2, target_modules=TARGETS, use_dora=True)),
    Case(
        "peft_ia3",
        lambda: adapted("IA3", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    Case("peft_loha", lambda: adapted("LoHa", r=2, target_modules=TARGETS)),
    Case("peft_lokr", lambda: adapted("LoKr", r=2, target_modules=TARGETS)),
    Case("peft_adalora", lambda: adapted("AdaLora", init_r=2, target_r=1, total_step=10, target_modules=TARGETS)),
    Case("peft_vera", lambda: adapted("Vera", r=2, target_modules=["q_proj"])),
    Case("peft_oft", lambda: adapted("OFT", oft_block_size=4, target_modules=TARGETS)),
    Case("peft_prompt", lambda: adapted("PromptTuning", num_virtual_tokens=2)),
    Case("peft_prefix", lambda: adapted("PrefixTuning", num_virtual_tokens=2)),
    Case("peft_layer_norms", lambda: adapted("LNTuning", target_modules=["input_layernorm"])),
)

CASES = (*DECODERS, *ENCODERS, *BOTH, *IMAGES, *ADAPTERS)
