"""Tensor Core usage: as the trace of a run tells it, and as the shapes of a model foretell it."""
