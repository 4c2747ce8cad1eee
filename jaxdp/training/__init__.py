"""Training runs: configuration, the jitted step, the loop, checkpoints, metrics and the report."""

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
