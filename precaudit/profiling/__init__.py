"""The pipeline of `precaudit profile`: audit, plan, verify, repair, report. Stages are functions; a runner executes the
runs."""
