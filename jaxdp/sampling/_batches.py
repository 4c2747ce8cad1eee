"""Batches as padded arrays of indices, drawn so that the privacy accounting holds."""

import dataclasses
from typing import NamedTuple

import dp_accounting
import jax
import jax.numpy as jnp
from dp_accounting import DpEvent
from jax import lax
from jaxtyping import Array, Bool, Int, Key, UInt32

from jaxdp._numbers import takes_numbers
from jaxdp._shown import of_shapes
from jaxdp.accounting import TruncatedPoissonDpEvent, overflow_probability

# Overflow this rare adds less than 1e-9 to delta even after a million steps at epsilon 10.
LARGEST_OVERFLOW = 1e-20
# Folded into the key of the coins: the order of a batch is drawn from other bits.
ORDER = 1
_PADDING_MULTIPLE = 8


class Batch(NamedTuple):
    """A batch of a fixed shape.

    Attributes:
        indices: rows of the data set, the real ones first and no row twice; 0 where `mask` is False.
        mask: True for the real examples. How many there are is private.
    """

    __repr__ = of_shapes

    indices: Int[Array, " padded"]
    mask: Bool[Array, " padded"]


@dataclasses.dataclass(frozen=True, init=False)
class PoissonSampling:
    r"""Poisson sampling: each example is in each batch independently with the same probability.

    A batch is an array of `padded_batch_size` indices and a mask. When more examples are drawn than fit, a
    uniformly random subset of that size is kept (truncated Poisson sampling), and `event` accounts for it.

    The inclusion probability really used is $\lfloor q\,2^{32} \rfloor / 2^{32} \le q$.

    Args:
        num_examples: $n$, the number of examples; public.
        sampling_probability: $q$ in (0, 1].
        padded_batch_size: indices per batch. Default: the smallest multiple of 8 that overflows with
            probability at most 1e-20 a step, which leaves epsilon unchanged, and at most
            `num_examples + 1` rounded up to a multiple of 8. Padding costs memory for indices, not computation.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> sampling = PoissonSampling(num_examples=1000, sampling_probability=0.05)
        >>> batch = sampling.sample(jax.random.key(0), step=0)
        >>> batch.indices.shape == batch.mask.shape == (sampling.padded_batch_size,)
        True

    References:
        B. Balle et al., *Privacy Amplification by Subsampling*, 2018, https://arxiv.org/abs/1807.01647;
        L. Chua et al., *Scalable DP-SGD: Shuffling vs. Poisson Subsampling*, 2024,
        https://arxiv.org/abs/2411.04205
    """

    num_examples: int
    sampling_probability: float
    padded_batch_size: int

    @takes_numbers
    def __init__(
        self, num_examples: int, sampling_probability: float | int, padded_batch_size: int | None = None
    ) -> None:
        _check_num_examples(num_examples)
        sampling_probability = float(sampling_probability)
        if not 0 < sampling_probability <= 1:
            raise ValueError(f"sampling_probability must be above 0 and at most 1, got {sampling_probability}.")
        if _threshold(sampling_probability) == 0:
            raise ValueError(f"sampling_probability must be at least 2**-32, got {sampling_probability}.")
        if padded_batch_size is None:
            padded_batch_size = default_padding(num_examples, sampling_probability)
        if padded_batch_size < 1:
            raise ValueError(f"padded_batch_size must be at least 1, got {padded_batch_size}.")
        object.__setattr__(self, "num_examples", num_examples)
        object.__setattr__(self, "sampling_probability", sampling_probability)
        object.__setattr__(self, "padded_batch_size", padded_batch_size)

    @classmethod
    @takes_numbers
    def from_expected_batch_size(
        cls, num_examples: int, expected_batch_size: float | int, padded_batch_size: int | None = None
    ) -> "PoissonSampling":
        """Poisson sampling with a given mean number of examples in a batch.

        Args:
            num_examples: number of examples; public.
            expected_batch_size: mean number of examples in a batch, above 0 and at most `num_examples`.
            padded_batch_size: as for the class.

        Returns:
            Sampling with probability `expected_batch_size / num_examples`.

        Raises:
            ValueError: an argument out of range.

        Example:
            >>> PoissonSampling.from_expected_batch_size(1000, 50).sampling_probability
            0.05
        """
        _check_num_examples(num_examples)
        if not 0 < expected_batch_size <= num_examples:
            raise ValueError(
                f"expected_batch_size must be above 0 and at most num_examples ({num_examples}), "
                f"got {expected_batch_size}."
            )
        return cls(num_examples, expected_batch_size / num_examples, padded_batch_size)

    @property
    def expected_batch_size(self) -> float:
        """Mean number of examples drawn: public, and what a noisy sum is to be divided by."""
        return self.num_examples * self.sampling_probability

    @property
    def _holds_every_sample(self) -> bool:
        """Whether no sample can overflow, also on the data set with one example more that privacy is about."""
        return self.padded_batch_size > self.num_examples

    @property
    def description(self) -> str:
        """How batches are drawn, in words."""
        text = "Poisson: each example is drawn for each batch independently with the same probability"
        if self._holds_every_sample:
            return text
        return text + "; samples above the padded size are cut to a uniformly random subset, as accounted"

    def sample(self, key: Key[Array, ""], step: int | Int[Array, ""]) -> Batch:
        """The batch of one step: the same for the same key and step, independent over steps.

        Args:
            key: the sampling stream of the run (`jaxdp.sampling.streams`).
            step: number of the step, below 2^32; may be traced.

        Returns:
            Indices and mask of `padded_batch_size` entries, the real ones first and in random order.

        Example:
            >>> sampling = PoissonSampling(100, 0.1)
            >>> indices, mask = jax.jit(sampling.sample)(jax.random.key(0), 5)
        """
        inclusion_key, subset_key = jax.random.split(jax.random.fold_in(key, step))
        drawn = included(inclusion_key, self.num_examples, self.sampling_probability)
        if self.padded_batch_size < self.num_examples:
            drawn = lax.cond(
                jnp.sum(drawn) > self.padded_batch_size,
                lambda: random_subset(subset_key, drawn, self.padded_batch_size),
                lambda: drawn,
            )
        (indices,) = jnp.nonzero(drawn, size=self.padded_batch_size, fill_value=0)
        mask = jnp.arange(self.padded_batch_size) < jnp.sum(drawn)
        # A random order hides which examples share an accumulator: see docs/floating_point.md.
        return Batch(shuffled(jax.random.fold_in(inclusion_key, ORDER), indices, mask), mask)

    def event(self, step_event: DpEvent, num_steps: int) -> DpEvent:
        """The event of `num_steps` releases, each on a batch of its own.

        Args:
            step_event: event of one release on a given batch, e.g. `clip.dp_event(noise_multiplier)`.
            num_steps: number of releases, at least 1.

        Returns:
            Plain Poisson sampling where every sample fits; otherwise a `TruncatedPoissonDpEvent`, which only
            `jaxdp.accounting` reads and which therefore cannot be mistaken for the plain one.

        Raises:
            ValueError: `num_steps` below 1.

        Example:
            >>> plan = PoissonSampling(100, 0.1).event(dp_accounting.GaussianDpEvent(1.0), num_steps=50)
        """
        _check_num_steps(num_steps)
        if self._holds_every_sample:
            step = dp_accounting.PoissonSampledDpEvent(self.sampling_probability, step_event)
        else:
            step = TruncatedPoissonDpEvent(
                self.num_examples, self.sampling_probability, self.padded_batch_size, step_event
            )
        return dp_accounting.SelfComposedDpEvent(step, num_steps)


@dataclasses.dataclass(frozen=True)
class FullBatch:
    """Every example in every batch: no amplification by sampling, no padding.

    For phases of many cheap full-batch steps, e.g. a linear head on cached features.

    Args:
        num_examples: number of examples; public.

    Raises:
        ValueError: `num_examples` below 1.

    Example:
        >>> batch = FullBatch(3).sample(jax.random.key(0), step=0)
        >>> batch.indices.tolist(), batch.mask.tolist()
        ([0, 1, 2], [True, True, True])
    """

    num_examples: int

    def __post_init__(self) -> None:
        _check_num_examples(self.num_examples)

    @property
    def sampling_probability(self) -> float:
        """Always 1."""
        return 1.0

    @property
    def padded_batch_size(self) -> int:
        """The number of examples."""
        return self.num_examples

    @property
    def expected_batch_size(self) -> float:
        """The number of examples."""
        return float(self.num_examples)

    @property
    def description(self) -> str:
        """How batches are drawn, in words."""
        return "full batch: every example in every step, without amplification by sampling"

    def sample(self, key: Key[Array, ""], step: int | Int[Array, ""]) -> Batch:
        """All examples in order; key and step are not used.

        Args:
            key: not used.
            step: not used.

        Returns:
            Every index, with a mask of True.
        """
        del key, step
        return Batch(jnp.arange(self.num_examples), jnp.ones(self.num_examples, dtype=bool))

    def event(self, step_event: DpEvent, num_steps: int) -> DpEvent:
        """The event of `num_steps` releases on the whole data set.

        Args:
            step_event: event of one release, e.g. `clip.dp_event(noise_multiplier)`.
            num_steps: number of releases, at least 1.

        Returns:
            The step's event, composed with itself.

        Raises:
            ValueError: `num_steps` below 1.
        """
        _check_num_steps(num_steps)
        return dp_accounting.SelfComposedDpEvent(step_event, num_steps)


def _threshold(sampling_probability: float) -> int:
    """Number of the 2^32 values of 32 random bits that draw an example; exact, as doubles hold q 2^32."""
    return int(sampling_probability * 2.0**32)


def included(key: Key[Array, ""], count: int, sampling_probability: float) -> Bool[Array, " examples"]:
    """One coin for each example, a function of the key and the example's row."""
    # Integers, not uniform floats: float32 would round probabilities up as well as down.
    bits = jax.random.bits(key, (count,), jnp.uint32)
    threshold = _threshold(sampling_probability)
    return bits < jnp.uint32(threshold) if threshold < 1 << 32 else jnp.ones_like(bits, dtype=bool)


def random_subset(key: Key[Array, ""], drawn: Bool[Array, " examples"], size: int) -> Bool[Array, " examples"]:
    """A uniformly random subset of the drawn examples, which are more than `size`."""
    # 64 bits to sort by: ties, which would favour small indices, have probability below 1e-7 for 10^6
    # examples.
    high, low = _two_words(key, drawn.shape[0])
    rank = lax.iota(jnp.int32, drawn.shape[0])
    order = lax.sort(((~drawn).astype(jnp.uint32), high, low, rank), num_keys=3)[3]
    return jnp.zeros_like(drawn).at[order[:size]].set(True)


def shuffled(key: Key[Array, ""], indices: Int[Array, " batch"], mask: Bool[Array, " batch"]) -> Int[Array, " batch"]:
    """The indices that the mask leaves, first and in uniformly random order; the others after them."""
    high, low = _two_words(key, indices.shape[0])
    return lax.sort(((~mask).astype(jnp.uint32), high, low, indices), num_keys=3)[3]


def _two_words(key: Key[Array, ""], count: int) -> tuple[UInt32[Array, " count"], UInt32[Array, " count"]]:
    words = jax.random.bits(key, (2, count), jnp.uint32)
    return words[0], words[1]


def default_padding(num_examples: int, sampling_probability: float) -> int:
    """The smallest multiple of 8 that practically never overflows."""
    multiples_low, multiples_high = 0, num_examples // _PADDING_MULTIPLE + 1
    while multiples_high - multiples_low > 1:
        middle = (multiples_low + multiples_high) // 2
        # One example more: the neighbouring data set that the accounting has in mind.
        tail = overflow_probability(num_examples + 1, sampling_probability, middle * _PADDING_MULTIPLE)
        if tail <= LARGEST_OVERFLOW:
            multiples_high = middle
        else:
            multiples_low = middle
    return multiples_high * _PADDING_MULTIPLE


def _check_num_examples(num_examples: int) -> None:
    if not 1 <= num_examples < 1 << 31:
        raise ValueError(f"num_examples must be at least 1 and below 2**31, got {num_examples}.")


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
