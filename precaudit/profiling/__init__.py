"""The main job: audit, plan, verify, repair, report. Stages are functions; runs come from a runner."""
