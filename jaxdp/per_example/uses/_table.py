"""Which rule fits which equation."""

from typing import Any

from jaxdp.norms import NormChoice
from jaxdp.numerics._wide import is_complex
from jaxdp.per_example.uses._contracted import Contracted
from jaxdp.per_example.uses._convolved import Convolved
from jaxdp.per_example.uses._elementwise import Added, Elementwise, Multiplied
from jaxdp.per_example.uses._gathered import Gathered
from jaxdp.per_example.uses._ragged_dot import Ragged
from jaxdp.per_example.uses._sliced import Sliced
from jaxdp.per_example.uses._use import Use

# What knows better than the equation's own derivative. For all other primitives, and where a rule does not match, there
# is `Use`.
RULES: dict[str, type[Use]] = {
    "dot_general": Contracted,
    "conv_general_dilated": Convolved,
    "gather": Gathered,
    "dynamic_slice": Sliced,
    "ragged_dot_general": Ragged,
    "add": Added,
    "sub": Added,
    "add_any": Added,
    "mul": Multiplied,
    "div": Elementwise,
    "max": Elementwise,
    "min": Elementwise,
    "pow": Elementwise,
    "select_n": Elementwise,
}


def use_of(eqn: Any, index: int, others_are_weights: bool, choice: NormChoice, active: tuple[int, ...] = ()) -> Use:
    """The best rule for operand `index` of an equation, which is differentiated by all its `active` operands."""
    rule = RULES.get(eqn.primitive.name, Use)
    plain = not any(is_complex(x.aval) for x in (*eqn.invars, *eqn.outvars))
    if rule is not Use and plain and not (others_are_weights and rule.alone) and rule.matches(eqn, index):
        return rule(eqn, index, rule.norm_choice(choice))
    return Use(eqn, index, choice, active)
