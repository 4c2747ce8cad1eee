"""The examples at their smallest, and the patterns of models that are too heavy to install here."""

import gzip
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from examples import common

SMALL = ["--steps", "2", "--examples", "64", "--batch-size", "16", "--microbatch-size", "16"]
EXAMPLES = {
    "tunix_decoder": ("tunix", ["--layers", "1", "--width", "16", "--length", "8"]),
    "equimo_images": ("equimo", ["--model", "convnext", "--width", "8"]),
    "haiku_lstm": ("haiku", ["--width", "8", "--length", "8"]),
}


@pytest.fixture
def as_users_run_it():
    """With JAX's own settings: the strict ones of the tests also judge other libraries' arithmetic."""
    jaxtyping.config.update("jaxtyping_disable", True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


def write_images(directory: Path) -> None:
    """Files like those of Fashion-MNIST, with few and random images."""
    generator = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pixels, labels = generator.integers(0, 256, (64, 784), np.uint8), generator.integers(0, 10, 64, np.uint8)
        for kind, head, rows in (("images-idx3", 16, pixels), ("labels-idx1", 8, labels)):
            (directory / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(bytes(head) + rows.tobytes()))


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.filterwarnings("ignore")  # those of other packages are theirs
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, tmp_path, capsys):
    package, arguments = EXAMPLES[name]
    pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[examples]'")
    if name == "equimo_images":
        write_images(tmp_path)
        arguments = [*arguments, "--directory", str(tmp_path)]
    found = importlib.import_module(f"examples.{name}").main([*arguments, *SMALL])
    assert found["difference"] < 1e-5
    assert 0 < found["epsilon"] <= 8.0
    assert np.isfinite(found["after"]) and found["after"] != found["before"]
    assert "held-out" in capsys.readouterr().out


@pytest.mark.quick
def test_a_missing_package_is_named():
    with pytest.raises(SystemExit, match=r"no_such_zoo is not installed: pip install '\.\[examples\]'.*brings zoo"):
        common.need("no_such_zoo", "zoo")


def test_texts_become_bytes_and_their_padding_counts_for_nothing():
    rows = common.texts_as_bytes(["abc", "a longer text"], 4)
    assert rows["ids"].tolist() == [[97, 98, 99, 0, 0], [97, 32, 108, 111, 110]]
    assert rows["mask"].tolist() == [[True, True, False, False], [True] * 4]
    logits = jnp.zeros((4, 256)).at[2:].set(jnp.nan)
    example = {name: jnp.asarray(x[0]) for name, x in rows.items()}
    assert common.next_byte_loss(logits.at[2:].set(jnp.arange(256.0)[None]), example) == pytest.approx(8.0)


class Projection(nnx.Module):
    """A weight of three axes that an einsum contracts with a batch of one."""

    def __init__(self, spec: str, shape: tuple[int, ...], rngs: nnx.Rngs):
        self.spec = spec
        self.w = nnx.Param(0.3 * jax.random.normal(rngs.params(), shape))

    def __call__(self, x):
        return jnp.einsum(self.spec, x, self.w[...])


class Layer(nnx.Module):
    """Attention with fewer heads of keys than of queries, checkpointed."""

    def __init__(self, rngs: nnx.Rngs):
        self.query = Projection("BTD,DNH->BTNH", (8, 4, 2), rngs)
        self.key = Projection("BSD,DKH->BSKH", (8, 2, 2), rngs)
        self.out = Projection("BTNH,NHD->BTD", (4, 2, 8), rngs)
        self.scale = nnx.Param(jnp.zeros(8))

    def block(self, x):
        normed = x * (1 + self.scale[...])[None, None]
        query, key = self.query(normed), self.key(normed)
        query = query.reshape(1, x.shape[1], 2, 2, 2)
        scores = jnp.einsum("BTKGH,BSKH->BKGTS", query, key)
        mixed = jnp.einsum("BKGTS,BSKH->BTKGH", jax.nn.softmax(scores), key)
        return x + self.out(mixed.reshape(1, x.shape[1], 4, 2))

    def __call__(self, x):
        return nnx.remat(Layer.block)(self, x)


class TiedDecoder(nnx.Module):
    """The pattern of Tunix's decoders: the table is indexed by a tuple, scaled, and used transposed as the head."""

    def __init__(self, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (11, 8)))
        self.layers = nnx.List([Layer(rngs) for _ in range(2)])

    def __call__(self, ids):
        x = self.table[(ids,)] * jnp.sqrt(8.0)
        for layer in self.layers:
            x = layer(x)
        return jnp.dot(x, self.table[...].T)


def test_the_pattern_of_a_tied_nnx_decoder_has_exact_norms():
    graph, params = nnx.split(TiedDecoder(nnx.Rngs(0)), nnx.Param)

    def loss(params, ids):
        logits = nnx.merge(graph, params)(ids[None, :-1])[0]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), ids[1:, None], axis=1))

    ids = jax.random.randint(jax.random.key(1), (3, 7), 0, 11)
    assert common.compare_norms(loss, params, ids) < 1e-5
