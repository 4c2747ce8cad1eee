"""The program of one example, run with a tap at every use of a parameter.

Comes in: a jaxpr and its values, and for each parameter what its taps shall do (a `Mode`). Goes out: the loss, with a
backward pass that reports certificates, factors or sums; and all uses that were seen, as `Site`s.

| module | what it has |
|---|---|
| `_sites` | where a parameter is used, and when norms at several places add up |
| `_taps` | the tap: an equation with a backward pass of its own |
| `_rewrite` | the evaluation, equation by equation |
| `_control_flow`, `_slices` | into loops, branches and checkpoints |
| `_traced`, `_overrides` | the loss traced once, with all uses; rules that a user chose |
| `_operand_views` | from sums at uses back to sums of parameters |

May import: `tracing`, `uses`, `subspace`.
"""
