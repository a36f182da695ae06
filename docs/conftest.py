"""The examples in these pages are tests; the configuration of Sphinx is not."""

collect_ignore = ["conf.py"]
