"""Running somebody's training script or model file under instrumentation, in child processes."""
