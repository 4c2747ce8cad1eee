"""What is said about a run afterwards: the report, its pictures, whether its results are whole.

May import: all rooms before it. `_run` and `_finish` beside it conduct all rooms.
"""
