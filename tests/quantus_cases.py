"""The network, inputs and maps of which tests/quantus_reference.json has the measures by Quantus."""

import numpy as np

SHAPE = (3, 2, 6, 6)
"""Examples, channels, height, width, as in torch."""
SIZES = {"fc1": (72, 12), "fc2": (12, 8), "fc3": (8, 4)}
PATCH, SUBSET, RUNS, RADIUS, TOP, SEED = 4, 20, 30, 0.05, 10, 7


def values(seed, *shape):
    """Normal numbers; the streams of RandomState never change."""
    return np.random.RandomState(seed).normal(size=shape)


def params(seed=0):
    """Weights (inputs, outputs) and biases of a network of dense layers."""
    return {
        name: {"kernel": values(seed + i, *size) / np.sqrt(size[0]), "bias": 0.1 * values(seed + i + 50, size[1])}
        for i, (name, size) in enumerate(SIZES.items())
    }


def inputs():
    return values(20, *SHAPE)


def maps():
    return values(21, *SHAPE)


def masks():
    """Boxes in the images, for all channels."""
    found = np.zeros(SHAPE, bool)
    found[:, :, 1:4, 2:6] = True
    return found


TARGETS, OTHERS = np.array([0, 2, 1]), np.array([3, 0, 2])


def subsets():
    """(runs, examples, size): the indices that FaithfulnessCorrelation removes."""
    rng = np.random.RandomState(SEED)
    return np.array([[rng.choice(72, SUBSET, replace=False) for _ in range(SHAPE[0])] for _ in range(RUNS)])


def noise():
    """(runs, *SHAPE): the noise of the measures of robustness."""
    rng = np.random.RandomState(SEED)
    return np.array([rng.uniform(-RADIUS, RADIUS, (SHAPE[0], 72)) for _ in range(RUNS)]).reshape(RUNS, *SHAPE)
