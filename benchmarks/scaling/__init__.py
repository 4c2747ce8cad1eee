"""Parts of `benchmarks/scale.py`: collectives of a compiled step, what fits a memory budget, a plan on paper."""
