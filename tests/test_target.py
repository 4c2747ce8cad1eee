"""The platform that a trace is for decides how it is put to the compiler, and how its rounding is counted."""

import types

import jax
import jax.numpy as jnp
import pytest

import jaxdp
from jaxdp.lowering import _target

KERNEL, IMAGES = jnp.ones((3, 3, 8, 8)), jnp.ones((2, 4, 4, 8))


def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    dims = ("NHWC", "HWIO", "NHWC")
    return jnp.sum(jnp.square(jax.lax.conv_general_dilated(x[None], w, (1, 1), "SAME", dimension_numbers=dims)))


def clipped(w: jax.Array, x: jax.Array) -> jax.Array:
    return jaxdp.per_example_grad(loss, method="ghost")(w, x).clipped_sum(lambda sq: 1 / jnp.sqrt(sq))


@pytest.mark.quick
def test_a_program_for_another_platform_has_its_forms_whatever_was_traced_before() -> None:
    step = jax.jit(clipped)
    here = step(KERNEL, IMAGES)
    on_a_cpu = step.lower(KERNEL, IMAGES).as_text()
    with_the_cpus_forms = jax.export.export(step, platforms=["tpu"])(KERNEL, IMAGES).mlir_module()
    with jaxdp.target("tpu"):
        exported = jax.export.export(step, platforms=["tpu"])(KERNEL, IMAGES)
        elsewhere = step.lower(KERNEL, IMAGES).as_text()
    assert exported.platforms == ("tpu",)
    # The sum over the batch is a convolution's own backward pass there, and a product of patches on a CPU.
    assert elsewhere.count("stablehlo.convolution") > on_a_cpu.count("stablehlo.convolution")
    assert exported.mlir_module().count("stablehlo.convolution") > with_the_cpus_forms.count("stablehlo.convolution")
    assert step.lower(KERNEL, IMAGES).as_text() == on_a_cpu
    assert jnp.array_equal(step(KERNEL, IMAGES), here)


def test_rounding_is_counted_for_the_platform_that_is_traced_for() -> None:
    slack = lambda: jaxdp.per_example_grad(lambda w, x: jnp.sum(jnp.tanh(x @ w)))(
        jnp.ones((64, 64)), jnp.ones((4, 512, 64))
    ).slack()
    on_a_cpu = slack()
    with jaxdp.target("tpu"):
        # One pass of bfloat16 factors, unless more is asked for.
        assert slack().per_example > on_a_cpu.per_example
    assert slack() == on_a_cpu


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(("told", "kind"), [("cuda", "gpu"), ("gpu", "gpu"), ("tpu", "tpu"), ("cpu", "cpu")])
def test_a_meshs_devices_say_it_too(told: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = types.SimpleNamespace(platform=told)
    sharding = types.SimpleNamespace(mesh=types.SimpleNamespace(devices=types.SimpleNamespace(flat=[device])))
    with _target.batch_sharded(sharding):  # pyright: ignore[reportArgumentType]
        assert _target.current() == kind
        with jaxdp.target("cpu"):
            assert _target.current() == "cpu"
    assert _target.current() == "cpu"


def test_an_unknown_platform_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"platform is 'tpuv5'.*'tpu'"), jaxdp.target("tpuv5"):
        pass
