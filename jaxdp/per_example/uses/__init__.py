"""What an example's gradient of a weight looks like where an equation uses it: one module for each kind of equation.

Comes in: an equation, which operand is the weight, and on the way back the operands and cotangents. Goes out: the
certificate of the gradient's norm, its weighted sum over the batch, or its factors. `_table` picks the rule; `_use.Use`
is the rule for everything else.

| module | equations |
|---|---|
| `_use` | the interface, and any equation by its own derivative |
| `_elementwise` | what is as large as its output (`add`, `mul`, `div`, `max`, ...) |
| `_contracted`, `_sharded` | `dot_general`, also of a parameter that several devices hold |
| `_convolved`, `_patches`, `_convolution_costs` | `conv_general_dilated` |
| `_gathered`, `_sliced` | lookups of rows, and of windows of them |
| `_ragged_dot` | products of groups of rows: mixtures of experts |
| `_costs` | what norms and sums cost, as far as rules have it in common |
| `_batching`, `_clipping`, `_clipping_weights` | how rules are run over a batch, and clipping weights from norms |

May import: `tracing`, `jaxdp.norms`. To add a rule: a module here, and a line in `_table`.
"""
