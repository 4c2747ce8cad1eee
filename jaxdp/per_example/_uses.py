"""Which rule fits which equation."""

from typing import Any

from jaxdp._wide import is_complex
from jaxdp.norms import NormChoice
from jaxdp.per_example._contracted import Contracted
from jaxdp.per_example._convolved import Convolved
from jaxdp.per_example._gathered import Gathered
from jaxdp.per_example._ragged_use import Ragged
from jaxdp.per_example._use import Added, Multiplied, Use


def use_of(eqn: Any, index: int, others_are_weights: bool, choice: NormChoice, active: tuple[int, ...] = ()) -> Use:
    """The best rule for operand `index` of an equation, which is differentiated by all its `active` operands."""
    name = eqn.primitive.name
    if any(is_complex(x.aval) for x in (*eqn.invars, *eqn.outvars)):
        return Use(eqn, index, choice, active)
    if not others_are_weights:
        if name == "dot_general":
            return Contracted(eqn, index, choice)
        if name == "gather" and Gathered.matches(eqn, index):
            return Gathered(eqn, index, choice)
        if name == "conv_general_dilated" and Convolved.matches(eqn, index):
            return Convolved(eqn, index, choice.plain())
        if name == "ragged_dot_general" and Ragged.matches(eqn, index):
            return Ragged(eqn, index, choice)
    if name in ("add", "sub", "add_any"):
        return Added(eqn, index, choice)
    if name == "mul":
        return Multiplied(eqn, index, choice)
    return Use(eqn, index, choice, active)
