"""The same small model and table as the tests of training."""

from tests.training.conftest import compile_each_program_once as compile_each_program_once
from tests.training.conftest import config_file as config_file
from tests.training.conftest import table as table
from tests.training.conftest import tiny_model as tiny_model
