"""What is trained on what: one module for each task, behind the interface `_task.Task`.

Comes in: a `Config`. Goes out: data and model as a `Task` (`_load.load_task`). May import: `config`, `files`.
"""
