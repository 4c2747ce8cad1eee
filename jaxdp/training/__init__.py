"""Training runs: configuration, the jitted step, the loop, checkpoints, metrics and the report."""

from typing import TYPE_CHECKING

from jaxdp._lazy import lazily

if TYPE_CHECKING:
    from jaxdp.training._errors import UserError
    from jaxdp.training._run import default_run_dir, resume, train
    from jaxdp.training.config._config import Config
    from jaxdp.training.config._io import dump_config, load_config
    from jaxdp.training.files._run_directory import RunDirectory
    from jaxdp.training.reporting._report import write_report
    from jaxdp.training.running._console import Display, Silent, make_display
    from jaxdp.training.running._loop import Interrupted
    from jaxdp.training.running._plan import Plan, make_plan
    from jaxdp.training.running._processes import is_first, join_processes
    from jaxdp.training.running._step import TrainState, make_step

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
        "Config": "jaxdp.training.config._config",
        "dump_config": "jaxdp.training.config._io",
        "load_config": "jaxdp.training.config._io",
        "Display": "jaxdp.training.running._console",
        "Silent": "jaxdp.training.running._console",
        "make_display": "jaxdp.training.running._console",
        "UserError": "jaxdp.training._errors",
        "Interrupted": "jaxdp.training.running._loop",
        "Plan": "jaxdp.training.running._plan",
        "make_plan": "jaxdp.training.running._plan",
        "is_first": "jaxdp.training.running._processes",
        "join_processes": "jaxdp.training.running._processes",
        "write_report": "jaxdp.training.reporting._report",
        "default_run_dir": "jaxdp.training._run",
        "resume": "jaxdp.training._run",
        "train": "jaxdp.training._run",
        "RunDirectory": "jaxdp.training.files._run_directory",
        "TrainState": "jaxdp.training.running._step",
        "make_step": "jaxdp.training.running._step",
    },
)
