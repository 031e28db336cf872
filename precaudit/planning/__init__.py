"""From measurements to a plan: static rules, error budget, loss scale, and applying a plan to a model."""
