"""Hooks that measure modules, operations, gradients and optimizer states, and leave no trace behind."""
