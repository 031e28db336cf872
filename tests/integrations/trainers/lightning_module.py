"""A LightningModule; the first argument is the folder for the report, "raise" as the second lets the training fail."""

import sys

import lightning.pytorch as pl
import torch
from torch import nn

from precaudit.integrations.lightning import AuditCallback


class Regression(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

    def training_step(self, batch, index):
        inputs, targets = batch
        if index == 9 and "raise" in sys.argv:
            raise RuntimeError("the tenth batch is broken")
        return nn.functional.mse_loss(self.net(inputs), targets)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


pl.seed_everything(0)
inputs = torch.randn(192, 8)
data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
trainer = pl.Trainer(
    max_epochs=1,
    accelerator="cpu",
    callbacks=[AuditCallback(sys.argv[1], every=4)],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(Regression(), torch.utils.data.DataLoader(data, 16))
