"""Cases of embeddings, attention and recurrent layers, where the batch dimension is easy to mistake."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.reference import modules as m
from tests.reference.case import Case, classes, normal, tokens
from tests.reference.cases_linear import SEQUENCES, over_tokens


def encoder(**options):
    return nn.TransformerEncoderLayer(6, 2, 8, **options)


def time_first_encoder():
    forward = lambda self, x: self.out(self.body(x.transpose(0, 1)).mean(0))  # noqa: E731
    return m.Lambda(forward, body=encoder(), out=nn.Linear(6, 3))


def packed(self, x, lengths):
    sequence = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    return self.out(self.recurrent(sequence)[1][-1])


def padding():
    """True where the sequence of a sample is over."""
    return torch.arange(4) >= torch.tensor([3, 2, 4, 1, 4])[:, None]


def masked(self, x, ended):
    return self.out(self.body(x, src_key_padding_mask=ended)[:, 0])


def causal(self, x):
    later = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
    return self.out(self.attention(x, x, x, attn_mask=later)[0].mean(1))


def time_major_tokens(self, tokens):
    x = torch.tanh(self.embedding(tokens.T))
    return self.out(x[0] - 2 * x[-1])


def translate(self, source, target):
    return self.out(self.decoder(target, self.encoder(source)).mean(1))


def attention(name, build, *inputs):
    """With the batch first and second, and with as many steps as samples, where the two look alike."""
    return [
        Case(f"{name}_{layout}_first", lambda first=layout == "batch": build(first), inputs[0])
        for layout in ("batch", "time")
    ] + [
        Case(f"{name}_{layout}_first_n_steps", lambda first=layout == "batch": build(first), inputs[1])
        for layout in ("batch", "time")
    ]


EMBEDDING_CASES = [
    Case("embedding", lambda: over_tokens(nn.Embedding(7, 6)), tokens()),
    Case("embedding_padding", lambda: over_tokens(nn.Embedding(7, 6, padding_idx=2)), tokens(5, 8)),
    Case("embedding_n_tokens", lambda: over_tokens(nn.Embedding(7, 6)), tokens(5, 5)),
    Case("embedding_frozen", lambda: m.freeze(over_tokens(nn.Embedding(7, 6)), "0.weight"), tokens()),
    Case(
        "embedding_of_one_token",
        lambda: nn.Sequential(nn.Embedding(7, 6), nn.Tanh(), nn.Linear(6, 3)),
        lambda: torch.tensor([0, 6, 2, 5, 3]),
    ),
    Case(
        "embedding_bag",
        lambda: nn.Sequential(nn.EmbeddingBag(7, 6), nn.Tanh(), nn.Linear(6, 3)),
        tokens(),
    ),
    Case(
        "embedding_time_major_n_steps",
        lambda: m.Lambda(time_major_tokens, embedding=nn.Embedding(7, 6), out=nn.Linear(6, 3)),
        tokens(5, 5),
    ),
    Case("positions", lambda: m.PositionalTransformer(4, 6, 3), tokens(5, 4)),
    Case("positions_n", lambda: m.PositionalTransformer(5, 6, 3), tokens(5, 5)),
    Case(
        "positions_n_transformer",
        lambda: m.PositionalTransformer(5, 6, 3, encoder(batch_first=True)),
        tokens(5, 5),
        train=True,
    ),
]

ATTENTION_CASES = [
    *attention("self_attention", lambda first: m.SelfAttention(6, 3, first), SEQUENCES, normal(5, 5, 6)),
    *attention(
        "cross_attention",
        lambda first: m.CrossAttention(6, 4, 3, first),
        lambda: (SEQUENCES(), normal(5, 3, 4)()),
        lambda: (normal(5, 5, 6)(), normal(5, 5, 4)()),
    ),
    Case("self_attention_no_bias", lambda: m.SelfAttention(6, 3, True, bias=False), SEQUENCES),
    Case(
        "self_attention_bias_kv",
        lambda: m.SelfAttention(6, 3, True, add_bias_kv=True, add_zero_attn=True),
        SEQUENCES,
    ),
    Case("self_attention_dropout", lambda: m.SelfAttention(6, 3, True, dropout=0.5), SEQUENCES, train=True),
    Case(
        "causal_attention",
        lambda: m.Lambda(causal, attention=nn.MultiheadAttention(6, 2, batch_first=True), out=nn.Linear(6, 3)),
        SEQUENCES,
    ),
    Case(
        "transformer_padding",
        lambda: m.Lambda(masked, body=nn.TransformerEncoder(encoder(batch_first=True), 2), out=nn.Linear(6, 3)),
        lambda: (SEQUENCES(), padding()),
    ),
    Case("learned_query", lambda: m.LearnedQuery(6, 3), SEQUENCES),
    Case("transformer_encoder", lambda: over_tokens(encoder(batch_first=True)), SEQUENCES),
    Case(
        "transformer_encoder_train",
        lambda: over_tokens(encoder(batch_first=True, norm_first=True)),
        normal(5, 5, 6),
        train=True,
    ),
    Case("transformer_encoder_time_first", time_first_encoder, normal(5, 5, 6)),
    Case(
        "transformer_encoder_decoder",
        lambda: m.Lambda(
            translate,
            encoder=nn.TransformerEncoder(encoder(batch_first=True), 2),
            decoder=nn.TransformerDecoderLayer(6, 2, 8, batch_first=True),
            out=nn.Linear(6, 3),
        ),
        lambda: (SEQUENCES(), normal(5, 3, 6)()),
    ),
]

RECURRENT_CASES = [
    Case("lstm", lambda: m.LastStep(nn.LSTM(6, 4, batch_first=True), 4, 3), SEQUENCES),
    Case("lstm_time_first", lambda: m.LastStep(nn.LSTM(6, 4), 4, 3, batch_first=False), normal(5, 5, 6)),
    Case(
        "gru_bidirectional",
        lambda: m.LastStep(nn.GRU(6, 4, 2, batch_first=True, bidirectional=True, dropout=0.2), 8, 3),
        SEQUENCES,
        train=True,
    ),
    Case(
        "gru_packed",
        lambda: m.Lambda(packed, recurrent=nn.GRU(6, 4, batch_first=True), out=nn.Linear(4, 3)),
        lambda: (SEQUENCES(), torch.tensor([2, 4, 1, 3, 4])),
    ),
    Case(
        "lstm_cell",
        lambda: m.Lambda(lambda s, x: s.out(s.cell(x)[0]), cell=nn.LSTMCell(6, 4), out=nn.Linear(4, 3)),
        normal(5, 6),
        classes(),
    ),
]
