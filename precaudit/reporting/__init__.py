"""Renderers: each makes one format from one Report."""
