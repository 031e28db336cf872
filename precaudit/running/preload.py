"""What the fork server imports once, so that every run starts with it.

Nothing here may start a thread: a fork copies only the thread that calls it.
"""

import precaudit.histograms.cpu
import precaudit.running.script
import precaudit.running.worker  # noqa: F401
