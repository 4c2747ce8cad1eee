"""Which entries of the gradient are clipped together, and how a group is clipped once its factors are there.

Comes in: what a user said about groups, sites, reported factors. Goes out: `Groups` (the group of every entry of every
parameter's stack); certificates and clipped sums of a `Family`, the parameters that share groups.

| module | what it has |
|---|---|
| `_groups`, `_blocks` | from "all", "layer", "param", blocks or prefix trees to `Groups` |
| `_families` | norms, weights and sums of one family from its factors, cross terms included |
| `_patterns` | families that are alike, as one program |
| `_by_group` | from entries to groups and back |

May import: `tracing`, `uses`, `rewriting`.
"""
