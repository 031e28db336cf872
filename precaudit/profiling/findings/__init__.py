"""The findings of a profile: all.py collects them, each of the others makes those of one cause."""
