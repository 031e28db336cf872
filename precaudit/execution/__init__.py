"""Running a model under a plan: natively by autocast, or emulated with CUDA's rounding points."""
