"""What does each command of `metanet` do? A module for each: `DESCRIPTION`, `EXAMPLES`, `add_arguments` and `run`.

This room stands on top of everything: it is the only one that knows data sets, tasks, trainer and report at once. The
modules import the heavy ones inside `run`, so that `--help` answers at once.
"""
