"""Privacy accounting: epsilon of what was run, the noise for a target, and the statement about it."""

from jaxdp.accounting._accountant import Guarantee as Guarantee
from jaxdp.accounting._accountant import delta_of as delta_of
from jaxdp.accounting._accountant import epsilon_curve as epsilon_curve
from jaxdp.accounting._accountant import epsilon_of as epsilon_of
from jaxdp.accounting._accountant import guarantee as guarantee
from jaxdp.accounting._calibration import calibrate as calibrate
from jaxdp.accounting._calibration import calibrate_noise_multiplier as calibrate_noise_multiplier
from jaxdp.accounting._calibration import epsilon as epsilon
from jaxdp.accounting._events import Clipping as Clipping
from jaxdp.accounting._events import Sampling as Sampling
from jaxdp.accounting._events import TruncatedPoissonDpEvent as TruncatedPoissonDpEvent
from jaxdp.accounting._events import overflow_probability as overflow_probability
from jaxdp.accounting._phase import Phase as Phase
from jaxdp.accounting._randomized_event import RandomizedGaussianDpEvent as RandomizedGaussianDpEvent
from jaxdp.accounting._serialization import event_from_dict as event_from_dict
from jaxdp.accounting._serialization import event_to_dict as event_to_dict
from jaxdp.accounting._statement import PrivacyStatement as PrivacyStatement
