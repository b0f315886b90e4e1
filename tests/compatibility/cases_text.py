"""Hugging Face models built from their configurations, and recurrent networks on packed sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import transformers
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from tests.callbacks.tiny import sgd
from tests.compatibility.case import BATCHES, EPOCHS, SAMPLES, Case, Fisher

CLASSES, WORDS, LENGTH = 3, 20, 6


class Text(LightningModule):
    """A Hugging Face model as its examples wrap it: the batch is the keywords, the output holds the loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        output = self.model(**batch)
        self.log("train_loss", output.loss, prog_bar=True, on_epoch=True)
        return output.loss

    def configure_optimizers(self):
        plain = [p for name, p in self.named_parameters() if name.endswith("bias")]
        decayed = [p for name, p in self.named_parameters() if not name.endswith("bias")]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, eps=1e-4)
        steps = EPOCHS * BATCHES
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, num_warmup_steps=1, num_training_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def own_loss(module, batch):
    return module.model(**batch).loss


def bert():
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        num_labels=CLASSES,
        initializer_range=0.3,
    )
    return Text(transformers.AutoModelForSequenceClassification.from_config(config))


def gpt2():
    config = transformers.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=1, n_head=2, n_positions=LENGTH)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return Text(model)


def sentences():
    """``(tokens, label)``, of different lengths."""
    return [(torch.randint(1, WORDS, (2 + i % (LENGTH - 1),)), torch.tensor(i % CLASSES)) for i in range(SAMPLES)]


def padded(samples):
    """What a tokenizer's collator makes."""
    tokens = [F.pad(words, (0, LENGTH - len(words))) for words, _ in samples]
    ids = torch.stack(tokens)
    labels = torch.stack([label for _, label in samples])
    return transformers.BatchEncoding({"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels})


def inputs_and_labels(samples):
    batch = dict(padded(samples))
    return batch, batch.pop("labels")


def language(samples):
    ids = torch.stack([F.pad(words, (0, LENGTH - len(words)), value=1) for words, _ in samples])
    return {"input_ids": ids, "labels": ids.clone()}


def next_words(samples):
    ids = language(samples)["input_ids"]
    return {"input_ids": ids}, ids[:, 1:]


class Logits(nn.Module):
    """The logits alone, for the metric."""

    def __init__(self, module):
        super().__init__()
        self.model = module.model

    def forward(self, **inputs):
        return self.model(**inputs).logits


class NextWordLogits(Logits):
    """Class dimension second, as torch's cross-entropy has it; the last position predicts nothing."""

    def forward(self, **inputs):
        return super().forward(**inputs)[:, :-1].transpose(1, 2)


class Tagger(LightningModule):
    """``nn.LSTM`` on packed sequences, classified from its last state."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 6, num_layers=2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, packed):
        return self.head(self.rnn(packed)[1][0][-1])

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch["sequences"]), batch["labels"])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return sgd(self.parameters())


class FromPadded(nn.Module):
    """Takes padded sequences and their lengths, whose samples are in dimension 0, and packs them itself."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, sequences, lengths):
        return self.module(pack_padded_sequence(sequences, lengths.cpu(), batch_first=True, enforce_sorted=False))


def series():
    return [(torch.randn(2 + i % 4, 4), torch.tensor(i % CLASSES)) for i in range(SAMPLES)]


def packed(samples):
    sequences, labels = zip(*samples, strict=True)
    return {"sequences": pack_sequence(sequences, enforce_sorted=False), "labels": torch.stack(labels)}


def packed_pair(samples):
    batch = packed(samples)
    return batch["sequences"], batch["labels"]


def padded_pair(samples):
    sequences, labels = zip(*samples, strict=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return (nn.utils.rnn.pad_sequence(sequences, batch_first=True), lengths), torch.stack(labels)


def packed_loss(module, batch):
    return F.cross_entropy(module(batch["sequences"]), batch["labels"])


CASES = [
    Case(
        "BERT classifier, dict batches, AdamW groups, warm-up per step",
        "transformers",
        bert,
        sentences,
        own_loss,
        padded,
        Fisher(inputs_and_labels, Logits),
        tolerance=1e-10,
    ),
    Case(
        "GPT-2 language model, tied weights, activation checkpointing",
        "transformers",
        gpt2,
        sentences,
        own_loss,
        language,
        Fisher(next_words, NextWordLogits),
        tolerance=1e-10,
    ),
    Case(
        "LSTM, batches with packed sequences; the metric on padded ones",
        "torch",
        Tagger,
        series,
        packed_loss,
        packed,
        Fisher(padded_pair, FromPadded),
    ),
    Case(
        "LSTM, the metric on packed sequences",
        "torch",
        Tagger,
        series,
        packed_loss,
        packed,
        Fisher(packed_pair, refused="samples, .* in dimension 0"),
    ),
]
