#!/usr/bin/env bash
# JAX on a CPU: a weighted sum of rows, `w @ G`, is made in one float32 accumulator for each column, however many rows
# there are, and precision="highest" changes nothing; the same sum written as multiply and jnp.sum is made in pieces.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, numpy 2.3.5; XLA's CPU compiler.
# Input: 65,537 rows of ones, the first with a weight of 2^24, the others of 1. Beside 2^24, float32 loses a single 1, so
# what is missing from 2^24 + 65,536 tells how many ones were added to the accumulator that holds 2^24.
#
# Expected beforehand: the product is blocked over its long side (as matrix products are) and loses some hundreds,
# whatever its shape; multiply and sum over the first axis adds row by row and loses all.
# Seen: the other way round. The row times the matrix loses all 65,536, at every precision and for 8 or 512 columns;
# multiply and sum loses about a thousand; a product of 64 rows with the same matrix loses about 500 in each entry.
#   w @ G: 65536, 65536    w @ G at highest: 65536, 65536    sum(w * G): 1024, 512    64 rows @ G: 512, 512
#
# Who meets it: whoever adds up clipped per-example gradients as `weights @ gradients`; the rounding error of the sum
# grows with the batch. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.3.5
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax, jax.numpy as jnp, numpy as np

ROWS = 65_537
FORMS = {
    "w @ G": lambda w, G: w @ G,
    "w @ G at highest": lambda w, G: jnp.matmul(w, G, precision="highest"),
    "sum(w * G)": lambda w, G: jnp.sum(w[:, None] * G, axis=0),
    "64 rows @ G": lambda w, G: jnp.tile(w, (64, 1)) @ G,
}
print("jax", jax.__version__, "numpy", np.__version__)
lost = {name: [] for name in FORMS}
for columns in (8, 512):
    w, G = np.ones(ROWS, np.float32), np.ones((ROWS, columns), np.float32)
    w[0] = 2**24
    for name, form in FORMS.items():
        found = np.asarray(jax.jit(form)(w, G), np.float64)
        lost[name].append(int(np.max(2**24 + ROWS - 1 - found)))
for name, numbers in lost.items():
    print(f"{name}: {numbers} of the {ROWS - 1} ones are lost")
assert all(n == ROWS - 1 for n in lost["w @ G"] + lost["w @ G at highest"]), "one accumulator no more"
assert all(n <= 4096 for n in lost["sum(w * G)"] + lost["64 rows @ G"]), "pieces no more"
PYTHON
