"""Running a model under a plan: natively by autocast, or emulated with the rounding points of CUDA autocast."""
