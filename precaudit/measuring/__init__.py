"""What precision is worth: step times, memory, energy and kernels, measured; money and predictions from them."""
