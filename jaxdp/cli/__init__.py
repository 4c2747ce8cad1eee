"""The command line: `jaxdp train | resume | report | budget`.

`_main` has the commands, `_arguments` what is wrong with a line before anything else is loaded, `_help` the texts of
`--help`, `_budget` the command that costs a plan, `_stop` what Ctrl-C does. Nothing imports this package.
"""

from jaxdp.cli._main import main

__all__ = ["main"]
