"""`Trainer(..., callbacks=[AuditCallback()])`: a Hugging Face Trainer's own run, audited in some of its steps."""

from __future__ import annotations

import os
from typing import Any

from transformers import TrainerCallback

from precaudit.integrations.recording import Recording


class AuditCallback(TrainerCallback):
    """Audits one optimizer step in `every`, and writes report.json and plan.json into `out` every `save_every` steps,
    all files at the end. What is there is written over.

    A Trainer tells no callback of an exception: what was written last stays.
    """

    def __init__(self, out: str | os.PathLike[str] = "reports/audit", every: int = 16, save_every: int = 500) -> None:
        self._recording = Recording(out, every, save_every)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **others: Any
    ) -> None:
        self._recording.start(model, optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._recording.stepped()

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._recording.stop()
