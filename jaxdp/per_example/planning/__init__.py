"""What is decided before anything runs, from shapes alone: methods, modes, costs, slack; and how that is told.

Comes in: the traced loss, groups, a method. Goes out: a `Plan` (what each parameter's taps do, which families
are clipped where), the `Slack` of the sum, an `Explanation` for people.

| module | what it has |
|---|---|
| `_method`, `_plan` | what may be asked for, and the decision |
| `_costs` | what a use's norm and sum cost |
| `_slack` | what rounding may add to one example's influence |
| `_explain`, `_explanation`, `_prediction` | `jaxdp.explain` |

May import: all rooms before it.
"""
