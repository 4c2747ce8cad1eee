"""Batches drawn so that the privacy accounting holds, and the random keys of a run."""

from jaxdp.sampling._batches import Batch as Batch
from jaxdp.sampling._batches import FullBatch as FullBatch
from jaxdp.sampling._batches import PoissonSampling as PoissonSampling
from jaxdp.sampling._keys import Streams as Streams
from jaxdp.sampling._keys import key_from_entropy as key_from_entropy
from jaxdp.sampling._keys import key_from_seed as key_from_seed
from jaxdp.sampling._keys import streams as streams
from jaxdp.sampling._sharded import ShardedFullBatch as ShardedFullBatch
from jaxdp.sampling._sharded import ShardedPoissonSampling as ShardedPoissonSampling
