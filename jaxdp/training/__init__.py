"""Training runs: configuration, the jitted step, the loop, checkpoints, metrics and the report."""

from typing import TYPE_CHECKING

from jaxdp._lazy import lazily

if TYPE_CHECKING:
    from jaxdp.training._config import Config
    from jaxdp.training._config_io import dump_config, load_config
    from jaxdp.training._console import Display, Silent, make_display
    from jaxdp.training._errors import UserError
    from jaxdp.training._loop import Interrupted
    from jaxdp.training._plan import Plan, make_plan
    from jaxdp.training._processes import is_first, join_processes
    from jaxdp.training._report import write_report
    from jaxdp.training._run import default_run_dir, resume, train
    from jaxdp.training._run_directory import RunDirectory
    from jaxdp.training._step import TrainState, make_step

__all__ = [
    "Config",
    "Display",
    "Interrupted",
    "Plan",
    "RunDirectory",
    "Silent",
    "TrainState",
    "UserError",
    "default_run_dir",
    "dump_config",
    "is_first",
    "join_processes",
    "load_config",
    "make_display",
    "make_plan",
    "make_step",
    "resume",
    "train",
    "write_report",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Config": "jaxdp.training._config",
        "dump_config": "jaxdp.training._config_io",
        "load_config": "jaxdp.training._config_io",
        "Display": "jaxdp.training._console",
        "Silent": "jaxdp.training._console",
        "make_display": "jaxdp.training._console",
        "UserError": "jaxdp.training._errors",
        "Interrupted": "jaxdp.training._loop",
        "Plan": "jaxdp.training._plan",
        "make_plan": "jaxdp.training._plan",
        "is_first": "jaxdp.training._processes",
        "join_processes": "jaxdp.training._processes",
        "write_report": "jaxdp.training._report",
        "default_run_dir": "jaxdp.training._run",
        "resume": "jaxdp.training._run",
        "train": "jaxdp.training._run",
        "RunDirectory": "jaxdp.training._run_directory",
        "TrainState": "jaxdp.training._step",
        "make_step": "jaxdp.training._step",
    },
)
