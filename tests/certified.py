"""Norms that are rounded up by what rounding may do, against exact ones."""

from typing import Any

import numpy as np

# By what part of itself a squared norm may be larger where terms do not cancel.
ABOVE = 2e-4


def assert_certified(found: Any, exact: Any, above: float = ABOVE, rtol: float = 1e-6, floor: float = 0.0) -> None:
    """Not below the exact squared norms, but for their own rounding, and not far above."""
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    assert found.shape == exact.shape
    assert np.all(found >= exact * (1 - rtol)), np.min(found / exact)
    assert np.all(found <= exact * (1 + above) + floor), np.max(found / exact)
