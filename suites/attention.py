"""Networks of attention: a Vision Transformer, a GPT, the Transformer, and four architectures of transformers.

Needs `pip install -e '.[hf]'` for BERT, GPT-2, T5 and Swin; without it their cells say so. ``default``: a few thousand
parameters each; ``quick``: fewer terms; ``full``: a ViT of 4.7 million parameters against the exact Fisher;
``sampled``: a GPT of 6.0 million parameters and 5,000 words against the Monte-Carlo Fisher, with sampled probes.
"""

from curvbench import Preset, Suite, probe, problem

NAMES = ("diag", "kfac", "ekfac", "tkfac", "eva", "lngd")
PROBES = [probe("layer"), *(probe(name) for name in NAMES)]
SAMPLED = [*(probe(name, fisher_type="mc") for name in ("diag", "kfac", "ekfac", "tkfac")), probe("eva"), probe("lngd")]
LARGE = {"width": 256, "heads": 8, "depth": 6}
BERT = "hidden_size=16 intermediate_size=32 num_hidden_layers=1 num_attention_heads=2 max_position_embeddings=16"
GPT2 = "n_embd=16 n_layer=1 n_head=2 n_positions=16"
T5 = "d_model=16 d_kv=8 d_ff=32 num_layers=1 num_heads=2 relative_attention_num_buckets=8"
SWIN = "patch_size=2 embed_dim=8 depths=1/1 num_heads=1/2 window_size=2 mlp_ratio=2.0"


def _hf(samples, tokens):
    sizes = {"vocabulary": 16, "samples": samples, "tokens": tokens}
    return [
        problem("hf", architecture="BertForMaskedLM", config=BERT, **sizes),
        problem("hf", architecture="GPT2LMHeadModel", config=GPT2, **sizes),
        problem("hf", architecture="T5ForConditionalGeneration", config=T5, **sizes),
        problem("hf", architecture="SwinForImageClassification", config=SWIN, samples=samples),
    ]


SUITE = Suite(
    "Networks of attention",
    {
        "quick": Preset(
            [
                problem("vit", samples=4),
                problem("gpt", vocabulary=16, tokens=4, samples=4),
                *_hf(4, 4),
                problem("transformer", length=2, samples=4),
            ],
            [probe("diag"), probe("kfac"), probe("eva")],
        ),
        "default": Preset(
            [
                problem("vit", depth=2),
                problem("gpt", vocabulary=16),
                *_hf(4, 4),
                problem("transformer", length=4, samples=8),
            ],
            PROBES,
        ),
        "full": Preset([problem("vit", samples=32, **LARGE)], [probe(name) for name in NAMES]),
        "sampled": Preset([problem("gpt", vocabulary=5000, tokens=16, mc_samples=16, samples=8, **LARGE)], SAMPLED),
    },
)
