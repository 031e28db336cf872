"""What changed between two reports: matching, noise, metrics, thresholds and the trend. Imports no torch."""
