"""The script's own mixed precision: disabled in runs of float32 and of plans, and observed for what it loses in runs as
written."""
