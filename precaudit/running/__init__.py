"""Running the user's script or model file under instrumentation, in child processes."""
