"""The tour's code is the source's."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STOP = re.compile(r"^`(\S+\.py)`, `(\w+)`:\n\n```python no-run\n(.*?)^```$", re.DOTALL | re.MULTILINE)
STOPS = STOP.findall((ROOT / "docs" / "tour.md").read_text(encoding="utf-8"))


def test_there_are_ten_stops_that_fit_on_a_page() -> None:
    assert len(STOPS) == 10
    assert all(code.count("\n") <= 15 for _, _, code in STOPS)


@pytest.mark.parametrize(("path", "name", "code"), STOPS, ids=[name for _, name, _ in STOPS])
def test_a_stop_shows_the_lines_that_are_there(path: str, name: str, code: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    # The function's own lines, and those of what is defined after it: enough to find them again by its name.
    after = source[re.search(rf"^ *def {name}\b", source, re.MULTILINE).start() :]
    lines = after.splitlines()
    wanted = code.splitlines()
    shown = lambda at: textwrap.dedent("\n".join(lines[at : at + len(wanted)])).splitlines()
    assert any(shown(at) == wanted for at in range(len(lines))), f"{path} has changed: copy its lines to docs/tour.md"
