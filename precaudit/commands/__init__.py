"""The command line: one file a verb. A verb module has `add_parser(verbs)` and imports its work when it runs."""

from precaudit.commands import check, compare, devices, profile, report, trace

VERBS = (profile, compare, check, report, trace, devices)
