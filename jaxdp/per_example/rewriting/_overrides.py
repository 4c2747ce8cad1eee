"""Rules that a user chooses for how the norms of parameters' gradients are found."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdp.norms import Rule
from jaxdp.per_example.rewriting._sites import Site

Rules = Mapping[str, Rule]

_RULES = ("gram", "materialize")


def check_rules(rules: Any, method: str) -> None:
    """Refuse what is no mapping of patterns to rules, or has no effect."""
    if rules is None:
        return
    if not isinstance(rules, Mapping) or not all(isinstance(pattern, str) for pattern in rules):
        raise TypeError(f"rules is {rules!r}: give a mapping from paths such as \"params['head']\" to rules.")
    for pattern, rule in rules.items():
        if rule not in _RULES:
            raise ValueError(f"rules[{pattern!r}] is {rule!r}: use one of {', '.join(map(repr, _RULES))}.")
    if rules and method == "materialize":
        raise ValueError('rules have no effect with method="materialize", which stores all gradients: leave them out.')


def rules_of(rules: Rules | None, names: Sequence[str]) -> dict[int, Rule]:
    """The rule for each leaf that a pattern matches; of several patterns the last one counts."""
    return {leaf: rule for pattern, rule in (rules or {}).items() for leaf in _matches(pattern, names)}


def _matches(pattern: str, names: Sequence[str]) -> list[int]:
    # Paths are full of brackets and quotes, so the star is the only sign with a meaning.
    expression = re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)
    matched = [leaf for leaf, name in enumerate(names) if expression.fullmatch(name)]
    if not matched:
        raise ValueError(
            f"rules has the pattern {pattern!r}, which matches no parameter: write a whole path as jaxdp.explain "
            f"prints it, with * for any characters; params have {', '.join(names)}."
        )
    return matched


def check_choice(rules: Rules | None, names: Sequence[str], sites: Sequence[Site]) -> None:
    """Refuse a pattern that matches no leaf whose norm is found from matrix products."""
    able = {site.leaf for site in sites if site.isometric and site.sizes is not None}
    for pattern in rules or {}:
        matched = _matches(pattern, names)
        if able.isdisjoint(matched):
            uses = ", ".join(sorted({primitive_of(site) for site in sites if site.leaf in matched}))
            raise ValueError(
                f"rules has {pattern!r}, but {', '.join(names[leaf] for leaf in matched)} enters no matrix product or "
                f"convolution by itself (it enters {uses}), so that there is nothing to choose: leave it out."
            )


def primitive_of(site: Site) -> str:
    """The name of the equation of a use."""
    return site.use.eqn.primitive.name if site.use.eqn is not None else "value"
