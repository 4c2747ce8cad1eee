"""Weak scaling on simulated devices: the batch grows with their number, and every number has a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("plain", "ghost", "fused", "randomised", "grape", "ghost-unplaced")
LAYOUTS = ("data", "fsdp")


def weak_scaling(
    devices: tuple[int, ...], keys: tuple[str, ...], scale: str, sizes: tuple[int, int], say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """One row for each number of devices, layout and step, as they come.

    Args:
      devices: numbers of devices.
      keys: steps, by name.
      scale: of the workload.
      sizes: examples of one device, and tokens of one example.
      say: told about every row.
    """
    for count in devices:
        job = {"devices": count, "layouts": LAYOUTS if count > 1 else LAYOUTS[:1], "steps": keys, "scale": scale}
        job |= {"batch_per_device": sizes[0], "seq": sizes[1]}
        command = [sys.executable, "-m", "benchmarks.scaling.worker", json.dumps(job)]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    row = json.loads(line)
                    say(f"{count} devices, {row['layout']}, {row['key']}: {row.get('note') or _brief(row)}")
                    yield row
            except BaseException:
                # Whoever stops asking, by Ctrl-C or by an error, needs no more rows.
                process.kill()
                raise
        if process.returncode:
            raise RuntimeError(f"the process with {count} devices ended with status {process.returncode}.")


def _brief(row: dict[str, Any]) -> str:
    sent, total = row["sent"] / 2**20, row["memory"]["total"] / 2**20
    return f"{sent:.1f} MiB sent, {total:.0f} MiB, compiled in {row['compile_seconds']:.0f} s"
