"""A Hugging Face Trainer that accumulates gradients; its first argument is the folder for the report."""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from precaudit.integrations.transformers import AuditCallback


class Counting(torch.utils.data.Dataset):
    def __len__(self):
        return 256

    def __getitem__(self, index):
        tokens = (index + torch.arange(16)) % 48
        return {"input_ids": tokens, "labels": tokens}


torch.manual_seed(0)
model = GPT2LMHeadModel(
    GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
)
arguments = TrainingArguments(
    output_dir=f"{sys.argv[1]}/checkpoints",
    max_steps=12,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
)
Trainer(model, arguments, train_dataset=Counting(), callbacks=[AuditCallback(sys.argv[1], every=4)]).train()
assert not any(module._forward_hooks for module in model.modules())
