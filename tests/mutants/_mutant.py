"""A mutant, and the catalogue of them."""

import dataclasses
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CATALOGUES = sorted(Path(__file__).parent.glob("*.toml"))


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change and the tests that must notice it.

    Attributes:
      name: what is wrong, in a few words.
      breaks: the guarantee that no longer holds.
      path: the file, from the repository's root.
      old: text that occurs exactly once in it.
      new: what stands there instead.
      tests: pytest's names of as few and fast tests as will do; at least one must fail.
    """

    name: str
    breaks: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, root: Path) -> str:
        """The file's text with the change.

        Raises:
          ValueError: the text that is to be changed is not there, or not there once: the catalogue is stale.
        """
        text = (root / self.path).read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.name}: {self.path} holds {self.old!r} {count} times where once is needed: correct `old` in the "
                "catalogue to the line that now has its meaning."
            )
        return text.replace(self.old, self.new)


def catalogue() -> list[Mutant]:
    """All mutants, in the order of the files."""
    found = []
    for path in CATALOGUES:
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
            found.append(Mutant(**entry | {"tests": tuple(entry["tests"])}))
    return found
