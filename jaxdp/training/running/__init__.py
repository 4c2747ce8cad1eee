"""A run while it goes on: plan and statement, the jitted step, the host's loop, checkpoints, the log, processes.

Comes in: a `Task` and a `Config`. Goes out: a run directory, step by step. May import: all rooms before it.
"""
