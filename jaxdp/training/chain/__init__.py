"""From a phase's fields to its chain of gradient transformations: clipping, subspace, noise, denoising, optimiser.

May import: `config`, `files`, `tasks`.
"""
