"""The loss of one example as a program: its equations, and what its values are made of.

Comes in: the loss, shapes of the parameters and of one example. Goes out: a jaxpr without dead code, and for its values
whether they are `Plain` or a `Weight`, a value computed from parameters alone, with the part of the parameter it shows.

| module | what it has |
|---|---|
| `_compat` | what differs between JAX releases |
| `_check` | what callers may give, refused by name |
| `_values` | `Plain`, `Weight`, and the `Shadow` that follows a parameter |
| `_views`, `_joined`, `_public` | weights from weights: slices, casts, parts side by side, rows at public places |
| `_active` | what depends on a parameter, so that there is a derivative by it |
| `_pitfalls` | what is allowed and rarely meant: a key for all examples, batch statistics |
| `_patch_products`, `_convolution_layout` | convolutions in a form that compilers are quicker with |
| `_ragged` | how products of groups of rows are batched, which JAX does not know |

May import: `jaxdp.numerics`, `jaxdp.lowering`. Knows nothing of norms.
"""
