"""Numbers: the dtypes that norms, sums and noise are made in, complex arrays as real ones, normal numbers."""
