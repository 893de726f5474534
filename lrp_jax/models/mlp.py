"""Networks of dense layers, and their training on tables."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lrp_jax.data.tables import Table, TableError


class MLP(nn.Module):
    """Dense layers `fc1`, `fc2` ... with a ReLU between them, on the flattened input.

    Attributes:
        widths: number of outputs of each layer. The last one is the number of classes.
        axes: number of axes of one example: 3 for images, 1 for the rows of a table.
    """

    widths: tuple[int, ...]
    axes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits (..., classes)."""
        x = x.reshape(*x.shape[: x.ndim - self.axes], -1)
        for i, width in enumerate(self.widths, 1):
            x = nn.Dense(width, name=f"fc{i}")(x)
            x = nn.relu(x) if i < len(self.widths) else x
        return x


def network_for(table: Table, hidden: Sequence[int] = (64, 32)) -> MLP:
    """An untrained network of dense layers with one output for each class of the table.

    Args:
        table: the table.
        hidden: the widths of the hidden layers.
    """
    return MLP((*hidden, len(table.classes)))


def fit(network: MLP, table: Table, steps: int = 500, rate: float = 3e-3, decay: float = 1e-2, seed: int = 0) -> Any:
    """Trains a network on the training examples: AdamW on the cross-entropy, all examples at each step.

    Args:
        network: a network for the table.
        table: the table.
        steps: the number of steps.
        rate: the learning rate of the first step; it falls to 0 on a cosine.
        decay: the weight decay.
        seed: seed of the random initialization.

    Returns:
        The trained parameters.

    Raises:
        TableError: optax is not installed.
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
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        return train(params)
