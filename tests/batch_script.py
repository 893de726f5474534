"""Explains a small data set into a store; the tests kill it, and start it in several processes.

python batch_script.py STORE SECONDS_FOR_EACH_ITEM [COORDINATOR PROCESS]
"""

import sys
import time

import jax
import numpy as np

import lrp_jax
import lrp_jax.batch

ITEMS, DAMAGED, INFINITE = 45, 7, 19


class Images:
    """Images from a seed. One cannot be read, another has a pixel that is not finite."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.names = [f"image {i}" for i in range(ITEMS)]

    def __len__(self):
        return ITEMS

    def __getitem__(self, i):
        time.sleep(self.seconds)
        if i == DAMAGED:
            raise OSError("the file is damaged")
        x = np.random.default_rng(i).uniform(size=(6, 6, 2)).astype(np.float32)
        x[0, 0, 0] = np.inf if i == INFINITE else x[0, 0, 0]
        return x


def network(params, x):
    z = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(z + params["bias"]).reshape(x.shape[0], -1) @ params["dense"]


def parameters():
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 2, 4), "bias": (1, 1, 1, 4), "dense": (144, 5)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def explain(store, images, **options):
    explainer = lrp_jax.lrp(network, lrp_jax.composites.epsilon_plus())
    options = {"batch_size": 3, "chunk": 6, "ledger": True, "layers": ("dense",), **options}
    return lrp_jax.batch.explain_dataset(explainer, parameters(), images, store, **options)


if __name__ == "__main__":
    if sys.argv[3:]:
        jax.distributed.initialize(sys.argv[3], 2, int(sys.argv[4]))
    summary = explain(sys.argv[1], Images(float(sys.argv[2])))
    assert (summary.explained, summary.unreadable, summary.not_finite) == (ITEMS - 2, 1, 1), summary
