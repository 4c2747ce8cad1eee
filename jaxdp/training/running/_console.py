"""What a user sees while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from typing import Any, Protocol, runtime_checkable

import rich.console
import rich.progress


@runtime_checkable
class Display(Protocol):
    """Shows how a run goes."""

    def say(self, text: str) -> None:
        """One line."""
        ...

    def prepare(self, what: str, done: int, total: int) -> None:
        """Work before a phase."""
        ...

    def begin(self, phase: str, first: int, done: int, last: int) -> None:
        """A phase of the updates after `first` up to `last` starts, or goes on after `done`."""
        ...

    def step(self, done: int, phase: str, epsilon: float) -> None:
        """After an update."""
        ...

    def evaluated(self, done: int, total: int, phase: str, epsilon: float, score: str) -> None:
        """After an evaluation."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


def make_display() -> Display:
    """The display that suits where the output goes."""
    return Bar() if sys.stderr.isatty() else Lines()


def epsilon_text(epsilon: float) -> str:
    """Rounded up, so that what is shown is never below what was spent."""
    return f"{math.ceil(epsilon * 100) / 100:.2f}" if math.isfinite(epsilon) else "none (no guarantee)"


class Lines:
    """Plain lines."""

    def __init__(self, every_seconds: float = 10.0):
        self._every = every_seconds
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        """One line."""
        print(text, file=sys.stderr, flush=True)

    def prepare(self, what: str, done: int, total: int) -> None:
        """A line now and then."""
        if done == total or time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self.say(f"{what}: {done:,} of {total:,}")

    def begin(self, phase: str, first: int, done: int, last: int) -> None:
        """Nothing to show."""

    def step(self, done: int, phase: str, epsilon: float) -> None:
        """Only evaluations make a line."""

    def evaluated(self, done: int, total: int, phase: str, epsilon: float, score: str) -> None:
        """One line."""
        self.say(f"step {done}/{total}  phase {phase}  epsilon {epsilon_text(epsilon)}  {score}")

    def close(self) -> None:
        """Nothing to do."""


class Silent:
    """For processes that do not print."""

    def say(self, text: str) -> None:
        """Nothing."""

    def prepare(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def begin(self, phase: str, first: int, done: int, last: int) -> None:
        """Nothing."""

    def step(self, done: int, phase: str, epsilon: float) -> None:
        """Nothing."""

    def evaluated(self, done: int, total: int, phase: str, epsilon: float, accuracy: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Bar:
    """A rich progress bar."""

    def __init__(self):
        self._console = rich.console.Console(stderr=True)
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[note]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
        )
        self._progress = rich.progress.Progress(*columns, console=self._console, refresh_per_second=4)
        self._tasks: dict[str, Any] = {}
        self._score = ""
        self._first = 0
        self._progress.start()

    def say(self, text: str) -> None:
        """One line above the bar."""
        self._progress.console.print(text, highlight=False, markup=False)

    def prepare(self, what: str, done: int, total: int) -> None:
        """A bar of its own."""
        self._update(what, done, total, "")
        if done >= total:
            self._progress.remove_task(self._tasks.pop(what))

    def begin(self, phase: str, first: int, done: int, last: int) -> None:
        """A bar of its own: only within a phase do steps take the same time."""
        self._first = first
        self._update(phase, done - first, last - first, "")

    def step(self, done: int, phase: str, epsilon: float) -> None:
        """Move on."""
        note = f"epsilon {epsilon_text(epsilon)}{self._score}"
        self._progress.update(self._tasks[phase], completed=done - self._first, note=note)

    def evaluated(self, done: int, total: int, phase: str, epsilon: float, score: str) -> None:
        """Show the score from now on."""
        self._score = f"  {score}"
        if phase in self._tasks:
            self.step(done, phase, epsilon)

    def close(self) -> None:
        """Stop drawing."""
        self._progress.stop()

    def _update(self, name: str, done: int, total: int, note: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note=note)
        self._progress.update(self._tasks[name], completed=done, total=total, note=note)
