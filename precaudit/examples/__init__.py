"""Training scripts to try precaudit on: real data, seconds to run."""
