"""A script for torchrun, started without it."""

import os

RANK = int(os.environ["LOCAL_RANK"])
