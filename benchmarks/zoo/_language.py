"""Language models: Tunix, Penzai, and Qwix around them."""

import jax
import jax.numpy as jnp
import optax

from benchmarks.zoo._model import BATCH, Parts, integers, of

VOCAB, LENGTH = 17, 6


def _drawn(params):
    """The package leaves kernels at zero, to be loaded."""
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    fresh = lambda x: x.shape[-1] ** -0.5 * jax.random.normal(next(keys), x.shape, jnp.float64) if x.ndim > 1 else x
    return jax.tree.map(fresh, params)


def _next_token(call):
    """Of one sequence, by a model of a batch of them."""

    def loss(p, ids):
        inputs = ids[None, :-1]
        positions = jnp.arange(LENGTH)[None]
        mask = jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool))
        logits = call(p, inputs, positions, mask)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[1:]).mean()

    return loss, integers(1, VOCAB, BATCH, LENGTH + 1)


def _tunix(family: str, class_name: str, **config) -> Parts:
    import importlib

    from flax import nnx

    module = importlib.import_module(f"tunix.models.{family}.model")
    sizes = {"num_layers": 2, "embed_dim": 8, "hidden_dim": 12, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
    model = getattr(module, class_name)(module.ModelConfig(**sizes, **config), rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    call = lambda p, ids, positions, mask: nnx.merge(graphdef, p, rest)(ids, positions, None, mask)[0]
    loss, batch = _next_token(call)
    return Parts(loss, _drawn(nnx.to_pure_dict(params)), batch)


@of("google-tunix", "Llama 3, tied")
def tunix_llama() -> Parts:
    return _tunix("llama3", "Llama3", vocab_size=VOCAB, rope_theta=10_000, norm_eps=1e-5, weight_tying=True)


@of("google-tunix", "Llama 3, checkpointed decoder layers")
def tunix_llama_remat() -> Parts:
    import tunix.models.llama3.model as module

    remat = module.RematConfig.DECODER
    return _tunix("llama3", "Llama3", vocab_size=VOCAB, rope_theta=10_000, norm_eps=1e-5, remat_config=remat)


@of("google-tunix", "Qwen 3")
def tunix_qwen() -> Parts:
    return _tunix("qwen3", "Qwen3", vocab_size=VOCAB, rope_theta=10_000, norm_eps=1e-6)


@of("google-tunix", "Qwen 3, mixture of experts")
def tunix_qwen_experts() -> Parts:
    experts = {"num_experts": 4, "num_experts_per_tok": 2}
    return _tunix("qwen3", "Qwen3", vocab_size=VOCAB, rope_theta=10_000, norm_eps=1e-6, **experts)


@of("google-tunix", "Gemma 3, sliding windows")
def tunix_gemma() -> Parts:
    return _tunix("gemma3", "Gemma3", num_embed=VOCAB, sliding_window_size=4)


@of("penzai", "LlamalikeTransformer with named axes")
def penzai_llama() -> Parts:
    from penzai import pz
    from penzai.models.transformer.variants import llamalike_common

    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=2,
        embedding_dim=8,
        projection_dim=4,
        mlp_hidden_dim=12,
        num_decoder_blocks=2,
        vocab_size=VOCAB,
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
        rope_wavelength=10_000,
        rms_norm_eps=1e-5,
        attention_type=llamalike_common.AttentionTypeGlobalCausal(),
        activation_dtype=jnp.float64,
        parameter_dtype=jnp.float64,
        use_layer_stack=True,
    )
    net = llamalike_common.build_llamalike_transformer(config, init_base_rng=jax.random.key(0))
    net, variables = pz.unbind_params(net)
    frozen = [v.freeze() for v in variables]
    names = [tuple(v.value.named_axes) for v in frozen]
    params = {str(v.label): v.value.untag(*n).unwrap() for v, n in zip(frozen, names, strict=True)}

    def call(p, ids, positions, mask):
        del positions, mask
        values = [
            v.__class__(label=v.label, value=pz.nx.wrap(p[str(v.label)]).tag(*n), metadata=v.metadata)
            for v, n in zip(frozen, names, strict=True)
        ]
        tokens = pz.nx.wrap(ids).tag("batch", "seq")
        model = pz.bind_variables(net, values)
        arguments = {"token_positions": pz.nx.wrap(jnp.arange(LENGTH)).tag("seq")}
        return model(tokens, **arguments).untag("batch", "seq", "vocabulary").unwrap()

    loss, batch = _next_token(call)
    return Parts(loss, params, batch)


def _linen_net():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids):
            x = nn.Embed(VOCAB, 8, name="embed")(ids)
            x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x, mask=nn.make_causal_mask(ids))
            return nn.Dense(VOCAB, name="head")(nn.gelu(nn.Dense(16, name="up")(x)))

    return Net()


def _qwix_linen(provider, trained: str) -> Parts:
    """A linen model that the provider rewrites; `trained` is `"lora"` or everything."""
    import flax
    import qwix

    model = provider(qwix, _linen_net())
    ids = jnp.asarray(integers(1, VOCAB, 1, LENGTH))
    variables = model.init(jax.random.key(0), ids)
    frozen, flat = {}, flax.traverse_util.flatten_dict(variables)
    flat = {"/".join(path): x for path, x in flat.items()}
    own = {k: x for k, x in flat.items() if ("lora" in k if trained == "lora" else k.startswith("params"))}
    own = _drawn(own)
    frozen = {k: x for k, x in flat.items() if k not in own}

    def call(p, inputs, positions, mask):
        del positions, mask
        tree = flax.traverse_util.unflatten_dict({tuple(k.split("/")): x for k, x in (frozen | p).items()})
        out = model.apply(tree, inputs, mutable=[k for k in variables if k != "params"])
        return out[0]

    loss, batch = _next_token(call)
    return Parts(loss, own, batch)


@of("qwix", "LoRA on a linen transformer")
def qwix_lora() -> Parts:
    def provider(qwix, net):
        return qwix.apply_lora_to_model(net, qwix.LoraProvider(module_path=".*", rank=2, alpha=2.0))

    return _qwix_linen(provider, "lora")


@of("qwix", "QLoRA: LoRA over int8 weights")
def qwix_qlora() -> Parts:
    def provider(qwix, net):
        rule = {"module_path": ".*(up|head|attention).*", "rank": 2, "alpha": 2.0, "weight_qtype": jnp.int8}
        return qwix.apply_lora_to_model(net, qwix.LoraProvider(**rule))

    return _qwix_linen(provider, "lora")


@of("qwix", "QAT: int8 weights and activations, straight-through")
def qwix_qat() -> Parts:
    def provider(qwix, net):
        rule = qwix.QtRule(module_path=".*", weight_qtype=jnp.int8, act_qtype=jnp.int8)
        return qwix.quantize_model(net, qwix.QtProvider([rule]))

    return _qwix_linen(provider, "all")


@of("qwix", "LoRA on Tunix's Llama 3")
def qwix_tunix_lora() -> Parts:
    import qwix
    import tunix.models.llama3.model as module
    from flax import nnx

    sizes = {"num_layers": 2, "embed_dim": 8, "hidden_dim": 12, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
    config = module.ModelConfig(**sizes, vocab_size=VOCAB, rope_theta=10_000, norm_eps=1e-5)
    model = module.Llama3(config, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    model = nnx.merge(graphdef, _drawn(params), rest)
    ids = jnp.zeros((1, LENGTH), jnp.int32)
    inputs = (ids, jnp.arange(LENGTH)[None], None, jnp.ones((1, LENGTH, LENGTH), bool))
    provider = qwix.LoraProvider(module_path=".*(q_proj|kv_proj|gate_proj|down_proj)", rank=2, alpha=2.0)
    adapted = qwix.apply_lora_to_model(model, provider, *inputs, rngs=nnx.Rngs(1))
    graphdef, params, rest = nnx.split(adapted, nnx.LoRAParam, ...)
    call = lambda p, ids, positions, mask: nnx.merge(graphdef, p, rest)(ids, positions, None, mask)[0]
    loss, batch = _next_token(call)
    return Parts(loss, _drawn(nnx.to_pure_dict(params)), batch)
