"""Whether the results of a run are what the run wrote."""

import hashlib
from pathlib import Path

from jaxdp.training._errors import UserError
from jaxdp.training.files._run_directory import RunDirectory
from jaxdp.training.files._sealed import read_json, read_sealed


def check_results(run: RunDirectory) -> None:
    """Refuse to report on results that are not as the run wrote them."""
    if not (run.finished.exists() and run.result.exists()):
        return
    finished = read_sealed(run.finished)
    damaged = damaged_results(run, finished["files"], but=run.model)
    if read_json(run.result) != finished["result"]:
        damaged.append(run.result)
    if damaged:
        raise UserError(f"{damaged[0]} is not as the run wrote it: `jaxdp resume {run.path}` writes it again.")


def damaged_results(run: RunDirectory, sums: dict[str, str], but: Path | None = None) -> list[Path]:
    """Files that are not what they were."""
    paths = {run.path / name: value for name, value in sums.items()}
    return [path for path, value in paths.items() if but not in path.parents and _sum(path) != value]


def sums_of_results(run: RunDirectory) -> dict[str, str]:
    """SHA-256 of what was made of the last state."""
    files = [run.metrics, run.details, run.samples, *sorted(run.model.rglob("*"))]
    return {path.relative_to(run.path).as_posix(): _sum(path) or "" for path in files if path.is_file()}


def _sum(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
