"""A sequence classifier written in the manner of Hugging Face: dict batches in, a ModelOutput out.

Task: is a line of the standard library's documentation prose or code?
"""
from __future__ import annotations

import pydoc_data.topics
from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Any, Optional

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class ModelOutput(OrderedDict):
    """An ordered dict whose items are attributes too; fields that are None are left out."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]


@dataclass
class SequenceClassifierOutput(ModelOutput):
    loss: Optional[torch.FloatTensor] = None
    logits: torch.FloatTensor = None
    hidden_states: Optional[tuple[torch.FloatTensor, ...]] = None


@dataclass
class Config:
    vocab_size: int = 128
    hidden_size: int = 32
    num_attention_heads: int = 4
    num_hidden_layers: int = 2
    intermediate_size: int = 64
    max_position_embeddings: int = 40
    num_labels: int = 2


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, hidden_states, attention_mask):
        q, k, v = self.split(self.query(hidden_states)), self.split(self.key(hidden_states)), self.split(
            self.value(hidden_states)
        )
        scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5 + attention_mask
        context = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        hidden_states = self.norm1(hidden_states + self.dense(context))
        return self.norm2(hidden_states + self.output(nn.functional.gelu(self.intermediate(hidden_states))))


class Classifier(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids, attention_mask, labels=None, output_hidden_states=False):
        positions = torch.arange(input_ids.size(1), device=input_ids.device)
        hidden = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        extended = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(hidden.dtype).min
        all_hidden = (hidden,)
        for layer in self.layers:
            hidden = layer(hidden, extended)
            all_hidden += (hidden,)
        logits = self.classifier(hidden[:, 0])
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=all_hidden if output_hidden_states else None
        )


class Lines(Dataset):
    def __init__(self, length: int) -> None:
        lines = [line for topic in pydoc_data.topics.topics.values() for line in topic.splitlines()]
        self.lines = [line for line in lines if len(line.strip()) > 10][:6000]
        self.length = length

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        line = self.lines[index]
        codes = [min(ord(c), 127) for c in line.strip()[: self.length]]
        padding = self.length - len(codes)
        return {
            "input_ids": torch.tensor(codes + [0] * padding),
            "attention_mask": torch.tensor([1] * len(codes) + [0] * padding),
            "labels": torch.tensor(int(line.startswith("     "))),
        }


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = Config()
    model = Classifier(config).to(device)
    no_decay = ("bias", "norm1.weight", "norm2.weight")
    groups = [
        {"params": [p for n, p in model.named_parameters() if not n.endswith(no_decay)], "weight_decay": 0.01},
        {"params": [p for n, p in model.named_parameters() if n.endswith(no_decay)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    loader = DataLoader(Lines(config.max_position_embeddings), batch_size=24, shuffle=True)
    for step, batch in enumerate(loader):
        batch = {key: value.to(device) for key, value in batch.items()}
        outputs = model(**batch, output_hidden_states=step % 50 == 0)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if outputs.hidden_states is not None:
            norms = [f"{h.norm(dim=-1).mean().item():.2f}" for h in outputs["hidden_states"]]
            print(f"step {step}: loss {outputs[0].item():.4f}, hidden norms {norms}")


if __name__ == "__main__":
    main()
