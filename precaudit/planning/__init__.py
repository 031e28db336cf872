"""From measurements to a plan: static rules, error budget and loss scale."""
