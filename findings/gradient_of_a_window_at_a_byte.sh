#!/usr/bin/env bash
# JAX on a CPU: the gradient of lax.dynamic_slice lands in other rows than were read, where the start is uint8 or int8
# and the axis is longer than that dtype counts. Under vmap it is right.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, numpy 2.3.5 (wrong); jax 0.12.0.1 is right.
# Input: a table of 300 numbers, windows of 4 that begin at 100 and at 255 as the batch's uint8 column says (a day, a
# state, a byte offset); the derivative of the window's first number by the table.
#
# Expected beforehand: all forms agree, as the window that is read is the right one in all of them.
# Seen: both gradients are at row 40, in jit and outside it; vmap's are at rows 100 and 255. dynamic_update_slice writes
# to row 40 likewise. 300 - 4 = 296 is the last place where the window fits, and 296 modulo 256 is 40: the place is moved
# to a limit that was rounded to the start's own dtype first. With int16 starts it is right.
#
# Who meets it: whoever cuts positions out of a table at an offset that is stored in a byte. The loss is right and falls;
# rows that were never read are trained. A per-example gradient taken one by one differs from vmap's. Fails if that
# changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.3.5
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax, jax.numpy as jnp, numpy as np

TABLE, PLACES = np.arange(300, dtype=np.float32), (100, 255)
first = lambda table, start: jax.lax.dynamic_slice(table, (start,), (4,))[0]
row = lambda gradient: int(np.argmax(np.abs(gradient)))
print("jax", jax.__version__, "numpy", np.__version__)
found = {}
for dtype in (jnp.uint8, jnp.int16):
    starts = jnp.array(PLACES, dtype)
    grad = jax.grad(first)
    found[dtype.__name__] = {
        "read": [int(first(TABLE, s)) for s in starts],
        "grad": [row(grad(TABLE, s)) for s in starts],
        "jit": [row(jax.jit(grad)(TABLE, s)) for s in starts],
        "vmap": [row(g) for g in jax.vmap(grad, (None, 0))(TABLE, starts)],
        "update": [row(jax.lax.dynamic_update_slice(np.zeros(300, np.float32), jnp.ones(4), (s,))) for s in starts],
    }
    print(dtype.__name__, found[dtype.__name__])
byte, short = found["uint8"], found["int16"]
assert all(rows == list(PLACES) for rows in short.values()), "int16 starts no longer agree"
assert byte["read"] == byte["vmap"] == list(PLACES), "reading or vmap changed"
assert byte["grad"] == byte["jit"] == byte["update"] == [40, 40], "the rows of the gradient changed"
PYTHON
