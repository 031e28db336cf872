"""Evaluation of paired training runs: statistics, gates and the verdict."""
