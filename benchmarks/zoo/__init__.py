"""Models of other people's packages beside `vmap(grad)`: `python -m benchmarks.zoo`."""
