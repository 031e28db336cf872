"""Common to all frameworks' callbacks: audit during training, and write the measurements periodically and at the end.

A callback must not break a long training: errors are logged, and the training continues.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from precaudit.api import audit
from precaudit.errors import PrecauditError, require_count
from precaudit.model import Report
from precaudit.reporting import DEFAULT_PLAN, FOLDER_FILES, write
from precaudit.reporting.files import write_each
from precaudit.tracing.merging import processes

log = logging.getLogger("precaudit")
_MEANWHILE = ("report.json", "plan.json")
"""Files written during training; pictures and pages would take too long."""


class Recording:
    """One audit of one training. `out` is overwritten every `save_every` steps, and completed at the end.

    Errors and warnings are logged once each, when a report first has them. Under `torchrun` the report covers all
    processes, and the first one writes it.
    """

    def __init__(self, out: str | os.PathLike[str], every: int, save_every: int) -> None:
        require_count("every", every)
        require_count("save_every", save_every)
        self._folder = Path(out)
        self._every = every
        self._save_every = save_every
        self._audit: audit | None = None
        self._saved = 0
        self._logged: set[str] = set()

    def start(self, model: Any, optimizer: Any) -> None:
        self.stop()
        self._saved = 0
        try:
            self._audit = audit(model, optimizer, self._every).__enter__()
        except PrecauditError as error:
            log.error("precaudit: nothing is audited: %s", error)
        except Exception:
            log.exception("precaudit: nothing is audited")

    def stepped(self) -> None:
        """Must be called after every optimizer step, by all processes."""
        if self._audit is not None and self._audit.steps - self._saved >= self._save_every:
            self._saved = self._audit.steps
            self._save(self._audit, _MEANWHILE)

    def stop(self) -> None:
        """End a training, in all processes."""
        running = self._take_off()
        if running is not None:
            self._save(running, FOLDER_FILES)

    def fail(self) -> None:
        """The training failed in this process: other processes may never get here, so no collective operation is
        used."""
        if processes() > 1:
            self._take_off()
        else:
            self.stop()

    def _take_off(self) -> audit | None:
        running, self._audit = self._audit, None
        try:
            if running is not None:
                running.__exit__(None, None, None)
        except Exception:
            log.exception("precaudit: the audit could not be taken off the model")
        return running

    def _save(self, running: audit, names: tuple[str, ...]) -> None:
        try:
            report = running.report()
            if processes() == 1 or dist.get_rank() == 0:
                self._write(report, names)
        except Exception:
            log.exception("precaudit: no report was written at step %d; the training goes on", running.steps)

    def _write(self, report: Report, names: tuple[str, ...]) -> None:
        _, problems = write_each(
            [self._folder / name for name in names], partial(write, report, plan=self._folder / DEFAULT_PLAN)
        )
        for problem in problems:
            log.warning("precaudit: %s", problem)
        for finding in report.findings:
            if finding.severity != "note" and finding.fingerprint not in self._logged:
                self._logged.add(finding.fingerprint)
                log.warning("precaudit: %s %s: %s", finding.rule, finding.fqn, finding.message)
