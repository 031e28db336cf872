"""Where a profile ran: versions, device and cores; read from torch in the process that asks."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any


def environment() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if cuda else None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
