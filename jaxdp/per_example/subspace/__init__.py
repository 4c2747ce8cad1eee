"""Gradients in a subspace: $g_i P$ instead of $g_i$, made from factors that are multiplied by P first.

Comes in: a `Projection` (P and the axes it is for) and a use. Goes out: the use's rule in the subspace.
May import: `tracing`, `uses`.
"""
