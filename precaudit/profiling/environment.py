"""The environment of a profile: versions, device and cores, read from torch in this process."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime

from precaudit.model import Environment


def environment(device: str | None = None) -> Environment:
    """This machine's; `device` is the script's if one was requested, else the machine's first GPU."""
    import torch

    cuda = torch.cuda.is_available()
    named = (device or "").partition(":")[2]
    index = int(named) if named and int(named) < torch.cuda.device_count() else None
    return Environment(
        python=platform.python_version(),
        torch=torch.__version__,
        platform=platform.platform(),
        processor=platform.processor() or platform.machine(),
        cpus=os.cpu_count(),
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(index) if cuda else "cpu",
        cuda=torch.version.cuda if cuda else None,
        capability=".".join(map(str, torch.cuda.get_device_capability(index))) if cuda else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
