"""Run with `python -m pkg` from the folder above."""
