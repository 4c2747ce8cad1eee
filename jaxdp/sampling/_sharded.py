"""Poisson batches of examples that lie on several devices: each device draws from its own."""

import dataclasses
from typing import Any

import dp_accounting
import jax
import jax.numpy as jnp
from dp_accounting import DpEvent
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, Key

from jaxdp.accounting import TruncatedPoissonDpEvent, overflow_probability
from jaxdp.lowering._shards import apart, check_generator, num_shards, together
from jaxdp.lowering._target import batch_sharded
from jaxdp.sampling._batches import (
    LARGEST_OVERFLOW,
    ORDER,
    Batch,
    FullBatch,
    PoissonSampling,
    default_padding,
    included,
    random_subset,
)

PyTree = Any


class Sharded:
    """Samplers whose examples are cut into shards of consecutive rows, the last of which may be smaller.

    Attributes:
        num_examples: $n$; public.
        sharding: how the leading axis of the examples, and of a batch, is cut.
    """

    num_examples: int
    sharding: NamedSharding

    @property
    def shards(self) -> int:
        """D, the number of shards."""
        return num_shards(self.sharding)

    @property
    def rows_per_shard(self) -> int:
        r"""$r = \lceil n/D \rceil$: shard s holds the rows $s r, \dots, (s+1) r - 1$ below n."""
        return -(-self.num_examples // self.shards)

    @property
    def padded_num_examples(self) -> int:
        """D r, the length of an array of all examples; its rows from n on are never drawn."""
        return self.shards * self.rows_per_shard

    def take(self, data: PyTree, batch: Batch) -> PyTree:
        """The rows of a batch, each read by the device that holds it.

        Args:
            data: a pytree of arrays with a leading axis of `padded_num_examples`, cut by `sharding`.
            batch: what `sample` returned.

        Returns:
            The pytree with a leading axis of `padded_batch_size`, cut likewise.
        """
        with batch_sharded(self.sharding):
            places = apart(batch.indices, self.shards) - self.rows_per_shard * jnp.arange(self.shards)[:, None]
            places = jnp.clip(places, 0, self.rows_per_shard - 1)
            pick = jax.vmap(lambda rows, i: rows[i])
            return jax.tree.map(lambda x: together(pick(apart(x, self.shards), places)), data)


@dataclasses.dataclass(frozen=True, init=False)
class ShardedPoissonSampling(Sharded):
    r"""`PoissonSampling` of examples that are cut over devices or hosts, none of which sees another's.

    Each example is in each batch independently with the same probability q: its coin is the one that `PoissonSampling`
    throws for it, a function of the key, the step and its row alone, so the batch is the same set of examples whatever
    the mesh. Shard s has room for $c = B/D$ of them, its equal part of the padded batch.

    **Privacy.** Where more than c examples of a shard are drawn, a uniformly random subset of that size is kept, of
    this shard. So the shards' samples are independent, and two data sets that differ by an example of shard s (with
    every other example where it is) have the same law in all other shards. Given those, a step adds a constant to what
    truncated Poisson sampling with the shard's own $n_s \le r$, q and c would release; the mean over them is no larger
    than the largest, as the hockey-stick divergence is jointly convex. So the event is that of **one shard**, not of
    their union. Its overflow probability grows with $n_s$, so r stands for all of them; a tighter analysis than that by
    the overflow probability need not grow with $n_s$, so sizes that are cut more often than once in $10^{20}$ steps are
    taken only where every shard has r examples.

    Args:
        num_examples: $n$, the number of examples on all devices; public.
        sampling_probability: $q$ in (0, 1].
        sharding: how the leading axis of the examples is cut, as from `jaxdp.parallel.batch_sharding`.
        padded_batch_size: B, a multiple of the number of shards. By default every shard has the room that overflows
            with probability at most 1e-20 a step.

    Raises:
        ValueError: an argument out of range; a size that does not divide; a size that cuts samples of shards that are
            not of one size.

    Example:
        >>> import jax, jaxdp
        >>> sharding = jaxdp.parallel.batch_sharding(jaxdp.parallel.make_mesh(data=1))
        >>> sampling = ShardedPoissonSampling(1000, 0.05, sharding)
        >>> indices, mask = jax.jit(sampling.sample)(jax.random.key(0), 5)

    References:
        L. Chua et al., *Scalable DP-SGD: Shuffling vs. Poisson Subsampling*, 2024,
        https://arxiv.org/abs/2411.04205
    """

    num_examples: int
    sampling_probability: float
    sharding: NamedSharding
    padded_batch_size: int

    def __init__(
        self,
        num_examples: int,
        sampling_probability: float | int,
        sharding: NamedSharding,
        padded_batch_size: int | None = None,
    ) -> None:
        shards = num_shards(sharding)
        object.__setattr__(self, "num_examples", num_examples)
        object.__setattr__(self, "sharding", sharding)
        # The checks of both are those of one device.
        whole = PoissonSampling(num_examples, sampling_probability, padded_batch_size or 1)
        object.__setattr__(self, "sampling_probability", whole.sampling_probability)
        if padded_batch_size is None:
            padded_batch_size = shards * default_padding(self.rows_per_shard, whole.sampling_probability)
        if padded_batch_size % shards:
            raise ValueError(
                f"padded_batch_size is {padded_batch_size} with {shards} shards: make it a multiple of {shards}."
            )
        object.__setattr__(self, "padded_batch_size", padded_batch_size)
        if num_examples % shards and self._overflow > LARGEST_OVERFLOW:
            raise ValueError(
                f"padded_batch_size is {padded_batch_size}, {self._room} for each shard, which cuts samples with "
                f"probability {self._overflow:.2g} a step, and {num_examples} examples do not divide into {shards} "
                "equal shards: leave it out, or use a number of examples that divides."
            )

    @property
    def _room(self) -> int:
        """c, the number of examples of one shard that fit."""
        return self.padded_batch_size // self.shards

    @property
    def _overflow(self) -> float:
        return overflow_probability(self.rows_per_shard + 1, self.sampling_probability, self._room)

    @property
    def expected_batch_size(self) -> float:
        """Mean number of examples drawn: public, and what a noisy sum is to be divided by."""
        return self.num_examples * self.sampling_probability

    @property
    def description(self) -> str:
        """How batches are drawn, in words."""
        text = "Poisson: each example is drawn for each batch independently with the same probability"
        if self._overflow == 0:
            return text
        return text + "; samples of a shard above its padded size are cut to a uniformly random subset, as accounted"

    def sample(self, key: Key[Array, ""], step: int | Int[Array, ""]) -> Batch:
        """The batch of one step: the same for the same key and step, independent over steps.

        Args:
            key: the sampling stream of the run (`jaxdp.sampling.streams`), the same on every process.
            step: number of the step, below 2^32; may be traced.

        Returns:
            Rows of the data set and a mask, `padded_batch_size` entries cut by `sharding`: those of each shard in its
            own part, the real ones first and in random order.
        """
        check_generator(key)
        inclusion_key, subset_key = jax.random.split(jax.random.fold_in(key, step))
        rows, room = self.rows_per_shard, self._room
        with batch_sharded(self.sharding):
            drawn = included(inclusion_key, self.padded_num_examples, self.sampling_probability)
            drawn = apart(drawn & (jnp.arange(self.padded_num_examples) < self.num_examples), self.shards)
            if room < rows:
                keys = jax.vmap(lambda s: jax.random.fold_in(subset_key, s))(jnp.arange(self.shards))
                drawn = lax.cond(
                    jnp.any(jnp.sum(drawn, axis=1) > room),
                    lambda: jax.vmap(lambda k, d: jnp.where(jnp.sum(d) > room, random_subset(k, d, room), d))(
                        keys, drawn
                    ),
                    lambda: drawn,
                )
            # The real ones first, in random order: a sort, which every device does for its own rows.
            words = jax.random.bits(jax.random.fold_in(inclusion_key, ORDER), (2, *drawn.shape), jnp.uint32)
            ranks = lax.broadcasted_iota(jnp.int32, drawn.shape, 1)
            order = lax.sort(((~drawn).astype(jnp.uint32), words[0], words[1], ranks), num_keys=3)[3]
            order = order[:, : min(room, rows)]
            order = jnp.pad(order, ((0, 0), (0, room - order.shape[1])))
            mask = jnp.arange(room)[None] < jnp.sum(drawn, axis=1, keepdims=True)
            first = rows * jnp.arange(self.shards)[:, None]
            return Batch(together(jnp.where(mask, order, 0) + first), together(mask))

    def event(self, step_event: DpEvent, num_steps: int) -> DpEvent:
        """The event of `num_steps` releases, each on a batch of its own; see the class for why it is one shard's.

        Args:
            step_event: event of one release on a given batch, e.g. `clip.dp_event(noise_multiplier)`.
            num_steps: number of releases, at least 1.

        Returns:
            Plain Poisson sampling where every sample fits; otherwise a `TruncatedPoissonDpEvent`.

        Raises:
            ValueError: `num_steps` below 1.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        if self._overflow == 0:
            step = dp_accounting.PoissonSampledDpEvent(self.sampling_probability, step_event)
        else:
            step = TruncatedPoissonDpEvent(self.rows_per_shard, self.sampling_probability, self._room, step_event)
        return dp_accounting.SelfComposedDpEvent(step, num_steps)


@dataclasses.dataclass(frozen=True)
class ShardedFullBatch(Sharded, FullBatch):
    """`FullBatch` of examples that are cut over devices.

    Args:
        num_examples: number of examples; public.
        sharding: how the leading axis of the examples is cut.

    Raises:
        ValueError: `num_examples` below 1.
    """

    sharding: NamedSharding

    @property
    def padded_batch_size(self) -> int:
        """The number of examples, filled up to equal shards."""
        return self.padded_num_examples

    def sample(self, key: Key[Array, ""], step: int | Int[Array, ""]) -> Batch:
        """All examples in order; key and step are not used."""
        del key, step
        rows = jnp.arange(self.padded_num_examples)
        return Batch(rows, rows < self.num_examples)

    def take(self, data: PyTree, batch: Batch) -> PyTree:
        """The data as they are."""
        del batch
        return data
