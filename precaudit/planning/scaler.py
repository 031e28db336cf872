"""The plan's loss scale as a torch.amp.GradScaler, for the user's own training loop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from precaudit.model import Plan

if TYPE_CHECKING:
    import torch

# torch counts good steps in an int32 and insists on factors that change the scale: a growth that never comes due,
# and a backoff that rounds away in the float32 scale, make it static. Steps that overflow are skipped all the same.
NEVER = 2**31 - 1
NO_BACKOFF = math.nextafter(1.0, 0.0)


def grad_scaler(plan: Plan, device: str | None = None) -> torch.amp.GradScaler:
    """The configured `torch.amp.GradScaler`; disabled (a scale of 1, no checks) where the plan needs none."""
    import torch

    setting = plan.loss_scale
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if setting.mode == "none":
        return torch.amp.GradScaler(kind, enabled=False)
    if setting.mode == "static":
        return torch.amp.GradScaler(kind, init_scale=setting.initial, backoff_factor=NO_BACKOFF, growth_interval=NEVER)
    return torch.amp.GradScaler(kind, init_scale=setting.initial, growth_interval=setting.interval)
