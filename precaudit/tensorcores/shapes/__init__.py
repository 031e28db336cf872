"""What the shapes of a model's products foretell: whether Tensor Cores run them, how long a step takes on a
card, and which dimensions to pad."""
