"""The command line, one module per command. Each has `add_parser(verbs)` and imports its dependencies when it runs."""

from precaudit.commands import check, compare, devices, profile, report, trace

VERBS = (profile, compare, check, report, trace, devices)
