"""Attention, recurrence and whole sequence models: modules, functions, masks, packs and cells."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo.case import Case, Net, Problem, classified, integers, normal

CAUSAL = torch.ones(3, 3).triu(1).bool()
PADDING = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1]]).bool()
LENGTHS = torch.tensor([2, 4, 1])


def attended(
    forward: Callable[..., Tensor], attention: nn.Module, *given: Tensor, **parts: Tensor | nn.Module
) -> Problem:
    """Attention of width 4 over sentences (3, 3) with a residual and a head per token."""
    net = Net(
        lambda m, x, *given: m.head((h := m.embed(x)) + forward(m, h, *given)),
        embed=nn.Embedding(7, 4),
        attention=attention,
        head=nn.Linear(4, 3),
        **parts,
    )
    return classified(net, integers(7, 3, 3), *given)


def self_attended(attention: nn.MultiheadAttention, **masks: Tensor | bool) -> Problem:
    """Self-attention by torch's own module, batch first."""
    return attended(lambda m, h: m.attention(h, h, h, need_weights=False, **masks)[0], attention)


def heads(h: Tensor) -> Tensor:
    """(N, T, 4) as two heads (N, 2, T, 2)."""
    return h.unflatten(-1, (2, 2)).transpose(1, 2)


def merged(h: Tensor) -> Tensor:
    """The inverse of ``heads``."""
    return h.transpose(1, 2).flatten(2)


def grouped_query(m: nn.Module, h: Tensor) -> Tensor:
    """Two query heads that share one key head, causal."""
    q, k, v = m.attention(h).split([4, 2, 2], -1)
    keys, values = k[:, None], v[:, None]
    return merged(F.scaled_dot_product_attention(heads(q), keys, values, is_causal=True, enable_gqa=True))


def relative(m: nn.Module, h: Tensor) -> Tensor:
    """Attention with a learnt bias per distance, minus infinity above the diagonal."""
    distance = (torch.arange(3)[:, None] - torch.arange(3)).clamp(0)
    bias = m.bias(distance).movedim(-1, 0)[None].masked_fill(CAUSAL, -torch.inf)
    q, k, v = map(heads, m.attention(h).chunk(3, -1))
    return merged(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))


def rotary(m: nn.Module, h: Tensor) -> Tensor:
    """Attention with rotated queries and keys, the softmax by hand."""
    angle = torch.arange(3, dtype=h.dtype)[:, None]
    q, k, v = map(heads, m.attention(h).chunk(3, -1))
    q, k = (
        torch.cat(
            [x[..., :1] * angle.cos() - x[..., 1:] * angle.sin(), x[..., :1] * angle.sin() + x[..., 1:] * angle.cos()],
            -1,
        )
        for x in (q, k)
    )
    return merged((q @ k.mT / 2**0.5).softmax(-1) @ v)


def linear_attention(m: nn.Module, h: Tensor) -> Tensor:
    """Causal attention without a softmax, by cumulated sums."""
    q, k, v = m.attention(h).chunk(3, -1)
    state = torch.einsum("ntd,nte->ntde", F.elu(k) + 1, v).cumsum(1)
    return torch.einsum("ntd,ntde->nte", F.elu(q) + 1, state)


def encoder(nested: bool = False, **options: bool) -> nn.TransformerEncoder:
    """Two layers; ``nested``: torch may pack padded sentences where it takes no gradients."""
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)


ATTENTION = (
    Case("mha", lambda: self_attended(nn.MultiheadAttention(4, 2, batch_first=True))),
    Case(
        "mha_weights_returned",
        lambda: attended(
            lambda m, h: m.attention(h, h, h)[0], nn.MultiheadAttention(4, 2, batch_first=True, bias=False)
        ),
    ),
    Case(
        "mha_padding",
        lambda: attended(
            lambda m, h, mask: m.attention(h, h, h, key_padding_mask=mask)[0],
            nn.MultiheadAttention(4, 2, batch_first=True),
            PADDING,
        ),
    ),
    Case(
        "mha_causal",
        lambda: self_attended(nn.MultiheadAttention(4, 2, batch_first=True), attn_mask=CAUSAL, is_causal=True),
    ),
    Case(
        "mha_bias_kv",
        lambda: self_attended(nn.MultiheadAttention(4, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)),
    ),
    Case(
        "mha_sequence_first",
        lambda: attended(
            lambda m, h: m.attention(h.transpose(0, 1), h.transpose(0, 1), h.transpose(0, 1))[0].transpose(0, 1),
            nn.MultiheadAttention(4, 2),
        ),
    ),
    Case(
        "mha_other_widths",
        lambda: attended(
            lambda m, h: m.attention(h, h[..., :3], h[..., :2])[0],
            nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True),
        ),
    ),
    Case(
        "mha_learnt_query",
        lambda: attended(
            lambda m, h: m.attention(m.query.expand(len(h), -1, -1), h, h)[0],
            nn.MultiheadAttention(4, 2, batch_first=True),
            query=normal(1, 1, 4),
        ),
    ),
    Case(
        "sdpa_of_one_weight",
        lambda: attended(
            lambda m, h: merged(F.scaled_dot_product_attention(*map(heads, m.attention(h).chunk(3, -1)))),
            nn.Linear(4, 12),
        ),
    ),
    Case("sdpa_grouped_query", lambda: attended(grouped_query, nn.Linear(4, 8))),
    Case("relative_bias", lambda: attended(relative, nn.Linear(4, 12, bias=False), bias=nn.Embedding(3, 2))),
    Case("rotary", lambda: attended(rotary, nn.Linear(4, 12))),
    Case("linear_attention", lambda: attended(linear_attention, nn.Linear(4, 12))),
    Case(
        "slices_of_one_projection",
        lambda: attended(
            lambda m, h: F.scaled_dot_product_attention(
                *(
                    F.linear(h, w, b)
                    for w, b in zip(m.attention.weight.chunk(3), m.attention.bias.split(4), strict=True)
                )
            ),
            nn.Linear(4, 12),
        ),
    ),
    Case("encoder", lambda: attended(lambda m, h: m.attention(h), encoder())),
    Case(
        "encoder_norm_first",
        lambda: attended(
            lambda m, h: m.attention(h, mask=CAUSAL.double().masked_fill(CAUSAL, -torch.inf)), encoder(norm_first=True)
        ),
    ),
    Case(
        "encoder_padding",
        lambda: attended(lambda m, h, mask: m.attention(h, src_key_padding_mask=mask), encoder(), PADDING),
    ),
    Case(
        "encoder_padding_nested",
        lambda: attended(lambda m, h, mask: m.attention(h, src_key_padding_mask=mask), encoder(nested=True), PADDING),
    ),
    Case(
        "decoder_layer",
        lambda: attended(
            lambda m, h: m.attention(h, h.flip(1), tgt_mask=CAUSAL),
            nn.TransformerDecoderLayer(4, 2, 6, batch_first=True, activation="gelu"),
        ),
    ),
    Case(
        "transformer",
        lambda: attended(lambda m, h: m.attention(h, h.sin()), nn.Transformer(4, 2, 1, 1, 6, batch_first=True)),
    ),
    Case(
        "latent_queries",
        lambda: attended(
            lambda m, h: m.attention.norm(
                F.scaled_dot_product_attention(
                    h, m.latent.expand(len(h), -1, -1), m.attention.value(m.latent).expand(len(h), -1, -1)
                )
            ),
            Net(lambda m: None, value=nn.Linear(4, 4), norm=nn.LayerNorm(4)),
            latent=normal(2, 4),
        ),
    ),
)


def recurred(
    recurrence: nn.Module,
    forward: Callable[..., Tensor],
    width: int = 4,
    given: tuple[Tensor, ...] = (),
    **parts: Tensor | nn.Module,
) -> Problem:
    """A recurrence over sentences (3, 4) of width 3, and a head of its states."""
    net = Net(
        lambda m, x, *given: m.head(forward(m, m.embed(x), *given)),
        embed=nn.Embedding(7, 3),
        recurrence=recurrence,
        head=nn.Linear(width, 3),
        **parts,
    )
    return classified(net, integers(7, 3, 4), *given)


def packed(m: nn.Module, h: Tensor, lengths: Tensor) -> Tensor:
    """The last states of sentences of different lengths, packed in an order of their own."""
    return m.recurrence(pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False))[1][-1]


def padded_again(m: nn.Module, h: Tensor, lengths: Tensor) -> Tensor:
    """All states of packed sentences, both directions, zero where a sentence has ended."""
    pack = pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(m.recurrence(pack)[0], batch_first=True, total_length=h.shape[1])[0]


def stepped(m: nn.Module, h: Tensor) -> Tensor:
    """The last state of a cell that is called once per word."""
    state = None
    for t in range(h.shape[1]):
        state = m.recurrence(h[:, t], state)
    return state[0] if isinstance(state, tuple) else state


def selective_scan(m: nn.Module, h: Tensor) -> Tensor:
    """A state space with steps that depend on the input."""
    step, b, c = m.recurrence(h).split([3, 2, 2], -1)
    step, state, states = F.softplus(step + m.shift), h.new_zeros(len(h), 3, 2), []
    for t in range(h.shape[1]):
        state = (
            state * torch.exp(-step[:, t, :, None] * m.log_a.exp()) + (step[:, t] * h[:, t])[..., None] * b[:, t, None]
        )
        states.append((state * c[:, t, None]).sum(-1))
    return torch.stack(states, 1) + m.skip * h


RECURRENCE = (
    Case("rnn_tanh", lambda: recurred(nn.RNN(3, 4, batch_first=True), lambda m, h: m.recurrence(h)[0][:, -1])),
    Case(
        "rnn_relu_sequence_first",
        lambda: recurred(
            nn.RNN(3, 4, nonlinearity="relu", bias=False),
            lambda m, h: m.recurrence(h.transpose(0, 1))[0].transpose(0, 1),
        ),
    ),
    Case("lstm", lambda: recurred(nn.LSTM(3, 4, batch_first=True), lambda m, h: m.recurrence(h)[0])),
    Case(
        "lstm_two_layers_both_ways",
        lambda: recurred(
            nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True), lambda m, h: m.recurrence(h)[0], 8
        ),
    ),
    Case(
        "lstm_projected",
        lambda: recurred(nn.LSTM(3, 5, proj_size=4, batch_first=True), lambda m, h: m.recurrence(h)[0][:, -1]),
    ),
    Case(
        "lstm_learnt_state",
        lambda: recurred(
            nn.LSTM(3, 4, batch_first=True),
            lambda m, h: m.recurrence(h, (m.start.expand(-1, len(h), -1).contiguous(), m.cell.repeat(1, len(h), 1)))[1][
                1
            ][0],
            start=normal(1, 1, 4),
            cell=normal(1, 1, 4),
        ),
    ),
    Case("gru", lambda: recurred(nn.GRU(3, 4, batch_first=True), lambda m, h: m.recurrence(h)[1][0])),
    Case(
        "gru_two_layers",
        lambda: recurred(
            nn.GRU(3, 4, num_layers=2, batch_first=True, dropout=0.2), lambda m, h: m.recurrence(h)[0][:, -1]
        ),
    ),
    Case("gru_packed", lambda: recurred(nn.GRU(3, 4, batch_first=True), packed, given=(LENGTHS,))),
    Case(
        "lstm_packed_both_ways",
        lambda: recurred(nn.LSTM(3, 4, bidirectional=True, batch_first=True), padded_again, 8, (LENGTHS,)),
    ),
    Case("rnn_cell", lambda: recurred(nn.RNNCell(3, 4), stepped)),
    Case("lstm_cell", lambda: recurred(nn.LSTMCell(3, 4), stepped)),
    Case("gru_cell", lambda: recurred(nn.GRUCell(3, 4), stepped)),
    Case(
        "recurrence_by_hand",
        lambda: recurred(
            Net(
                lambda m, x, state: (m.inner(x) + (0 if state is None else m.back(state))).tanh(),
                inner=nn.Linear(3, 4),
                back=nn.Linear(4, 4, bias=False),
            ),
            stepped,
        ),
    ),
    Case(
        "selective_scan",
        lambda: recurred(nn.Linear(3, 7), selective_scan, 3, log_a=normal(3, 2), shift=normal(3), skip=normal(3)),
    ),
    Case(
        "temporal_convolution",
        lambda: recurred(nn.Conv1d(3, 4, 2, dilation=2), lambda m, h: m.recurrence(F.pad(h.mT, (2, 0))).mT.relu()),
    ),
    Case(
        "seq2seq",
        lambda: recurred(
            nn.GRU(3, 4, batch_first=True),
            lambda m, h: m.decoder(h.flip(1), m.recurrence(h)[1])[0],
            decoder=nn.GRU(3, 4, batch_first=True),
        ),
    ),
    Case("lstm_batch_first_forgotten", lambda: recurred(nn.LSTM(3, 4), lambda m, h: m.recurrence(h)[0]), coupled=True),
)

CASES = (*ATTENTION, *RECURRENCE)
