"""The benefit of a precision: measured step times, memory, energy and kernels; cost and predictions."""
