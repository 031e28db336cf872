"""Observation of running models: module scopes, torch functions, and training events."""
