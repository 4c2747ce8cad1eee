"""Every release counts, as often as it is made, whatever the form in which events say so."""

import dp_accounting
import pytest

from jaxdp.accounting import epsilon_of

STEP = dp_accounting.GaussianDpEvent(3.0)
SAMPLED = dp_accounting.PoissonSampledDpEvent(0.1, STEP)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("event", [STEP, SAMPLED])
def test_the_same_release_in_several_phases_counts_in_each(event, accountant):
    spent = lambda event: epsilon_of(event, 1e-5, accountant)
    four = spent(dp_accounting.SelfComposedDpEvent(event, 4))
    pair = dp_accounting.ComposedDpEvent([event, event])
    for same in (
        dp_accounting.ComposedDpEvent([event] * 4),
        dp_accounting.ComposedDpEvent([dp_accounting.SelfComposedDpEvent(event, 3), event]),
        dp_accounting.SelfComposedDpEvent(pair, 2),
        dp_accounting.ComposedDpEvent([pair, pair]),
    ):
        assert spent(same) == pytest.approx(four, rel=1e-6)
    assert four > 1.2 * spent(event)


def test_several_releases_about_one_sample_are_one_with_less_noise():
    joint = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(6.0), 4)
    together = dp_accounting.PoissonSampledDpEvent(0.1, joint)
    assert epsilon_of(together, 1e-5) == pytest.approx(epsilon_of(SAMPLED, 1e-5), rel=1e-6)
