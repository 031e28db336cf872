"""Hooks that measure modules, operations, gradients and optimizer states, and the records that they produce."""
