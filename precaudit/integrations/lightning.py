"""`Trainer(callbacks=[AuditCallback()])`: a Lightning Trainer's own run, audited in some of its steps."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from precaudit.integrations.recording import Recording

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:  # the package has two names, and a script imported one of them
    _home = "pytorch_lightning" if "pytorch_lightning" in sys.modules else "lightning.pytorch"
    Callback = import_module(_home).Callback


class AuditCallback(Callback):
    """Audits one optimizer step in `every`, and writes report.json and plan.json into `out` every `save_every` steps,
    all files at the end or when the training fails. What is there is written over.
    """

    def __init__(self, out: str | os.PathLike[str] = "reports/audit", every: int = 16, save_every: int = 500) -> None:
        self._recording = Recording(out, every, save_every)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._recording.start(pl_module, trainer.optimizers)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
        self._recording.stepped()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._recording.stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._recording.fail()
