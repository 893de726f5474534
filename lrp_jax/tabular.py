"""Tables: scikit-learn's data sets, a network of dense layers in the data's shape, and which features matter."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.models.mnist import MLP

DATA_SETS = ("iris", "wine", "breast_cancer", "digits")
"""Names of scikit-learn's data sets with classes that come along with it."""


class TableError(ValueError):
    """A table that cannot be had; the message says why."""


class Table(NamedTuple):
    """Examples with named features, in two parts; features have mean 0 and variance 1 over the first.

    Attributes:
        features, classes: their names.
        train, test: values (N, features), float32, and class indices (N,).
    """

    features: tuple[str, ...]
    classes: tuple[str, ...]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load(name: str, seed: int = 0) -> Table:
    """A data set of scikit-learn, a quarter of it to test with.

    Raises:
        TableError: no such data set, or scikit-learn is missing.
    """
    if name not in DATA_SETS:
        raise TableError(f"no data set {name!r}; there are {', '.join(DATA_SETS)}.")
    try:
        from sklearn import datasets
    except ImportError:
        raise TableError("data sets need the package scikit-learn: pip install 'lrp_jax[tabular]'.") from None
    found: Any = getattr(datasets, f"load_{name}")()
    order = np.random.default_rng(seed).permutation(len(found.target))
    held = len(order) // 4
    train, test = order[held:], order[:held]
    mean, std = found.data[train].mean(0), found.data[train].std(0)
    x = ((found.data - mean) / np.where(std > 0, std, 1)).astype(np.float32)
    y = found.target.astype(np.int32)
    return Table(
        tuple(map(str, found.feature_names)),
        tuple(map(str, found.target_names)),
        (x[train], y[train]),
        (x[test], y[test]),
    )


def network_for(table: Table, hidden: Sequence[int] = (64, 32)) -> MLP:
    """Dense layers from the table's features over hidden ones to its classes."""
    return MLP((*hidden, len(table.classes)))


def fit(network: MLP, table: Table, steps: int = 500, rate: float = 3e-3, decay: float = 1e-2, seed: int = 0) -> Any:
    """Params after AdamW on cross-entropy, all examples at each step.

    Raises:
        TableError: optax is missing.
    """
    try:
        import optax
    except ImportError:
        raise TableError("training needs the package optax: pip install 'lrp_jax[tabular]'.") from None
    x, y = map(jnp.asarray, table.train)
    params = network.init(jax.random.key(seed), x[:1])["params"]
    optimizer = optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=decay)

    def loss(params):
        logits: Any = network.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0])
    with jax.numpy_dtype_promotion("standard"):  # which optax counts on
        return train(params)
