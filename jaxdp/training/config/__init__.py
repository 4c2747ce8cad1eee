"""Configuration files: sections and their fields, which of them fit together, reading and writing.

Comes in: TOML and overrides. Goes out: a `Config`, or one sentence about what is wrong with it. Knows no run.
"""
