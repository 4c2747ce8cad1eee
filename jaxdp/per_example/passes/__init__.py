"""A batch through the rewritten program: microbatches, one or two backward passes, examples that are not finite.

Comes in: a plan, the batch, clipping weights as a function of norms. Goes out: certificates and sums.

| module | what it has |
|---|---|
| `_microbatches` | the loop over microbatches, and their sum |
| `_finite` | examples without a finite gradient, replaced and left out |
| `_passes`, `_probes` | one microbatch: which passes a method needs |
| `_forward_pass` | one forward pass, and its backward passes, pulled back with what |
| `_loop_step` | a loop's step that clips the groups complete in it |
| `_materialize` | the reference: `vmap(grad)` |
| `_placement` | where batch and parameters lie on a mesh |

May import: all rooms before it. `PerExampleGrads` (`_grads`) calls it.
"""
