"""What each way to write `groups=` means, model kind by model kind, and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.per_example import Blocks, Groups, resolve_groups
from tests.per_example.model_zoo import ZOO

LIST = {"embed": jnp.ones((5, 2)), "layers": [{"w": jnp.ones((2, 2)), "b": jnp.ones(2)} for _ in range(3)]}
STACK = {"embed": jnp.ones((5, 2)), "layers": {"w": jnp.ones((3, 2, 2)), "b": jnp.ones((3, 2))}, "out": jnp.ones(2)}
STACKS = ((), (3,), (3,), ())
NESTED = {"a": {"attention": {"k": jnp.ones((3, 4))}, "mlp": {"k": jnp.ones((3, 8))}}}


def members(groups, params):
    """Paths of the leaves (with the indices of stacked entries) by group."""
    found = {name: [] for name in groups.names}
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for path, stack, own in zip(paths, groups.stacks, groups.of_leaf, strict=True):
        for index, group in zip(np.ndindex(*stack), own, strict=True):
            found[groups.names[group]].append(path + "".join(f"[{i}]" for i in index))
    return found


def test_layers_of_every_kind_of_model():
    expected = {
        "dense_net": {"": ["['b']", "['v']", "['w']"]},
        "nnx_conv_net": {
            "['conv']": ["['conv']['bias'].value", "['conv']['kernel'].value"],
            "['dense']": ["['dense']['bias'].value", "['dense']['kernel'].value"],
            "['norm']": ["['norm']['bias'].value", "['norm']['scale'].value"],
        },
        "equinox_mlp": {f".layers[{i}]": [f".layers[{i}].weight", f".layers[{i}].bias"] for i in range(3)},
        "haiku_lstm": {name: [f"{name}['b']", f"{name}['w']"] for name in ("['linear']", "['lstm/linear']")},
        "scalar_parameter": {"": [""]},
    }
    for model, layers in expected.items():
        params = ZOO[model]().params
        assert members(resolve_groups("layer", params), params) == layers, model
    linen = ZOO["linen_transformer"]().params
    names = resolve_groups("layer", linen).names
    assert "['params']['Embed_0']" in names and not any("kernel" in name or "bias" in name for name in names)
    boxed = {"dense": {"kernel": nn.Partitioned(jnp.ones(2), ("x",)), "bias": jnp.ones(2)}}
    assert resolve_groups("layer", boxed).names == ("['dense']",)


def test_an_array_beside_containers_is_a_layer_of_its_own():
    both = {"scale": jnp.ones(2), "shift": jnp.ones(2), "inner": {"w": jnp.ones(2), "b": jnp.ones(2)}}
    layers = {"['inner']": ["['inner']['b']", "['inner']['w']"], "['scale']": ["['scale']"], "['shift']": ["['shift']"]}
    assert members(resolve_groups("layer", both), both) == layers
    pairs = [(jnp.ones((2, 2)), jnp.ones(2)), (jnp.ones((2, 2)), jnp.ones(2))]
    assert resolve_groups("layer", pairs).names == ("[0]", "[1]")


@pytest.mark.quick
def test_scanned_layers_are_layers():
    layers = {"['embed']": ["['embed']"]}
    layers |= {f"['layers'][{i}]": [f"['layers']['b'][{i}]", f"['layers']['w'][{i}]"] for i in range(3)}
    layers |= {"['out']": ["['out']"]}
    assert members(resolve_groups("layer", STACK, STACKS), STACK) == layers
    params = {path: [path] for paths in layers.values() for path in paths}
    assert members(resolve_groups("param", STACK, STACKS), STACK) == params
    assert len(resolve_groups("all", STACK, STACKS)) == 1
    assert resolve_groups("all", STACK, STACKS).of_leaf == ((0,), (0, 0, 0), (0, 0, 0), (0,))
    assert len(resolve_groups("layer", STACK)) == 3 and len(resolve_groups("param", STACK)) == 4


def test_nested_stacks_have_an_index_for_each_axis():
    params = {"w": jnp.ones((2, 3, 4))}
    groups = resolve_groups("param", params, ((2, 3),))
    assert groups.names == tuple(f"['w'][{i}][{j}]" for i in range(2) for j in range(3))
    assert groups.of_leaf == ((0, 1, 2, 3, 4, 5),)


def test_functions_see_the_path_of_each_entry():
    seen = []
    groups = resolve_groups(lambda path: seen.append(path) or ("['layers']" in path), STACK, STACKS)
    stacked = [f"['layers']['{name}'][{i}]" for name in "bw" for i in range(3)]
    assert seen == ["['embed']", *stacked, "['out']"]
    assert groups.names == (False, True) and groups.of_leaf == ((0,), (1, 1, 1), (1, 1, 1), (0,))


def test_uniform_blocks_are_runs_of_modules_whose_largest_is_as_small_as_possible():
    sizes = [3, 1, 4, 1, 5, 9, 2, 6]
    params = [{"w": jnp.ones(size)} for size in sizes]
    for count in range(1, 9):
        groups = resolve_groups(Blocks(count), params)
        block = [own[0] for own in groups.of_leaf]
        assert groups.names == tuple(f"block {i}" for i in range(count))
        assert block == sorted(block) and set(block) == set(range(count))
        largest = max(sum(s for s, b in zip(sizes, block, strict=True) if b == i) for i in range(count))
        assert largest == best(tuple(sizes), count)


def best(sizes, count):
    """The smallest largest run, by trying every first run."""
    if count == 1:
        return sum(sizes)
    cuts = range(1, len(sizes) - count + 2)
    return min(max(sum(sizes[:cut]), best(sizes[cut:], count - 1)) for cut in cuts)


def test_blocks_take_stacked_layers_one_after_the_other():
    groups = resolve_groups(Blocks(5), STACK, STACKS)
    assert members(groups, STACK)["block 2"] == ["['layers']['b'][1]", "['layers']['w'][1]"]
    # Modules side by side with one stack are parts of the same layers.
    groups = resolve_groups(Blocks(3), NESTED, ((3,), (3,)))
    assert groups.of_leaf == ((0, 1, 2), (0, 1, 2))
    assert members(resolve_groups(Blocks(6), NESTED, ((3,), (3,))), NESTED)["block 1"] == ["['a']['mlp']['k'][0]"]


def test_named_heads_begin_blocks():
    groups = resolve_groups(Blocks(heads=["['layers'][1]"]), LIST)
    assert groups.names == ("start", "['layers'][1]")
    assert groups.of_leaf == ((0,), (0,), (0,), (1,), (1,), (1,), (1,))
    # A module's path, and that of one entry of a stack.
    groups = resolve_groups(Blocks(heads=("['embed']", "['layers'][1]", "['layers']['w'][2]")), STACK, STACKS)
    assert groups.names == ("['embed']", "['layers'][1]", "['layers']['w'][2]")
    assert groups.of_leaf == ((0,), (0, 1, 1), (0, 1, 2), (2,))
    many = [{"w": jnp.ones(2)} for _ in range(11)]
    assert resolve_groups(Blocks(heads=("[0]", "[1]", "[10]")), many).of_leaf[2:] == ((1,),) * 8 + ((2,),)


@pytest.mark.quick
def test_prefix_trees():
    groups = resolve_groups({"embed": 1.0, "layers": [0.5, {"w": 0.1, "b": 0.2}, 0.5]}, LIST)
    names = ("['embed']", "['layers'][0]", "['layers'][1]['b']", "['layers'][1]['w']", "['layers'][2]")
    assert groups.names == names
    assert groups.of_leaf == ((0,), (1,), (1,), (2,), (3,), (4,), (4,))
    # Names instead of numbers put nodes together; a node holds whole stacks.
    groups = resolve_groups({"embed": "ends", "layers": "body", "out": "ends"}, STACK, STACKS)
    assert groups.names == ("ends", "body") and groups.of_leaf == ((0,), (1, 1, 1), (1, 1, 1), (0,))
    # A plain dict fits any container with the same keys.
    state = ZOO["nnx_conv_net"]().params
    assert resolve_groups({"conv": 1, "dense": 1, "norm": 1}, state).names == ("['conv']", "['dense']", "['norm']")


def test_resolved_groups_are_taken_as_they_are():
    fine = resolve_groups("layer", STACK, STACKS)
    coarse = resolve_groups("layer", STACK)
    for stacks in (None, STACKS):
        assert resolve_groups(fine, STACK, stacks) is fine
        assert resolve_groups(coarse, STACK, stacks) is coarse
    assert hash(fine) != hash(coarse)
    with pytest.raises(ValueError, match=r"params\['layers'\]\['b'\] for a stack of \(3,\).*no stack.*groups\(spec\)"):
        resolve_groups(fine, STACK, ((),) * 4)
    with pytest.raises(ValueError, match=r"stack of \(3,\) where its shape is \(4, 2\)"):
        resolve_groups(fine, jax.tree.map(lambda x: jnp.ones((4, 2)), STACK))
    with pytest.raises(ValueError, match="groups are for 4 leaves where params have 7"):
        resolve_groups(fine, LIST)
    with pytest.raises(ValueError, match=r"the group 'b' has no leaf"):
        resolve_groups(Groups(("a", "b"), ((),), ((0,),)), jnp.ones(2))
    for own in ((2,), (0, 1), (-1,)):
        with pytest.raises(ValueError, match="give params the groups"):
            resolve_groups(Groups(("a", "b"), ((),), (own,)), jnp.ones(2))


@pytest.mark.parametrize(
    "spec, error, message",
    [
        ("layers", ValueError, r"groups is 'layers'.*\"layer\".*Blocks"),
        (1.0, TypeError, r"groups is 1.0: use"),
        (None, TypeError, r"groups is None: use"),
        ({"embed": None}, TypeError, r"groups is .*: use"),
        ({"embed": True, "layers": 1.0}, TypeError, r"groups is .*: use"),
        (lambda path: None, ValueError, r"params\['embed'\] has no group: the function"),
        (lambda path: [path], TypeError, r"params\['embed'\] has the group .*hashable"),
        ({"embed": 1.0}, ValueError, r"params\['layers'\]\[0\]\['b'\] has no group: give the prefix tree a node"),
        ({"embed": 1.0, "layers": [1.0] * 4}, ValueError, r"a node \['layers'\]\[3\] where params have none"),
        ({"embed": {"w": 1.0}, "layers": 1.0}, ValueError, r"params\['embed'\] has no group"),
        (Blocks(5), ValueError, r"Blocks\(5\) wants more blocks than there are modules to share out, 4"),
        (Blocks(heads=("['layers'][7]",)), ValueError, r"the head .*\[7\].* is the start of no path.*\['embed'\]"),
        (Blocks(heads=("['lay",)), ValueError, r"is the start of no path"),
        (Blocks(heads=("['layers']", "['layers'][0]")), ValueError, r"both begin at params\['layers'\]\[0\]\['b'\]"),
    ],
)
def test_what_is_refused(spec, error, message):
    with pytest.raises(error, match=message):
        resolve_groups(spec, LIST)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({}, TypeError, "give one of them"),
        ({"count": 2, "heads": ("a",)}, TypeError, "give one of them"),
        ({"count": 0}, ValueError, "at least one block"),
        ({"count": True}, TypeError, "whole number"),
        ({"count": 1.5}, TypeError, "whole number"),
        ({"heads": ()}, ValueError, "heads is empty"),
        ({"heads": "['layers']"}, TypeError, "sequence of paths"),
        ({"heads": ("a", "a")}, ValueError, "names 'a' twice"),
    ],
)
def test_impossible_blocks_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Blocks(**arguments)
