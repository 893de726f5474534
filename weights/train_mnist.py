"""Trains the networks for digits on MNIST: two of dense layers, one with convolutions.

python weights/train_mnist.py MNIST DESTINATION_FOLDER

MNIST holds the four original files; what is missing is downloaded to it.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from lrp_jax import digits, weights
from lrp_jax.models.mnist import MODELS

SEED, EPOCHS, BATCH, RATE, DECAY, SHIFT = 0, 20, 128, 2e-3, 1e-2, 2


def shifted(images, key):
    """Each image moved by up to SHIFT pixels in both directions, black coming in."""
    padded = jnp.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    by = jax.random.randint(key, (len(images), 2), 0, 2 * SHIFT + 1)
    return jax.vmap(lambda image, by: jax.lax.dynamic_slice(image, (by[0], by[1], 0), (28, 28, 1)))(padded, by)


def train(network, train_part):
    """Params after AdamW on cross-entropy of shifted digits, with a rate that falls to zero along a cosine."""
    x, y = train_part
    key = jax.random.key(SEED)
    params = network.init(key, x[:1])["params"]
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, steps), weight_decay=DECAY)

    def loss(params, x, y):
        logits: Any = network.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def update(params, state, x, y, key):
        value, grads = jax.value_and_grad(loss)(params, shifted(x, key), y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, order = optimizer.init(params), np.random.default_rng(SEED)
    with tqdm(total=steps) as progress:
        for epoch in range(EPOCHS):
            for batch in np.split(order.permutation(len(x))[: len(x) // BATCH * BATCH], len(x) // BATCH):
                key, now = jax.random.split(key)
                params, state, value = update(params, state, x[batch], y[batch], now)
                progress.update()
                progress.set_postfix(epoch=epoch, loss=f"{value:.4f}", refresh=False)
    return jax.tree.map(lambda p: np.asarray(p, np.float16), params)


def main():
    """Trains all, prints their accuracy on the test part, and saves them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("destination", type=Path)
    options = parser.parse_args()
    files = {model.name: options.destination / f"{model.name}.safetensors" for model in MODELS}
    for file in files.values():
        if file.exists():
            parser.error(f"{file} exists; name another folder, or move it away first")
    options.destination.mkdir(parents=True, exist_ok=True)
    train_part, test_part = (digits.fetch(options.mnist, part) for part in ("train", "test"))
    for model, file in zip(MODELS, files.values(), strict=True):
        params = train(model.network, train_part)
        full = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
        found = jax.jit(model.apply)(full, test_part.images).argmax(-1)
        right = int((np.asarray(found) == test_part.labels).sum())
        weights.save(file, params, {**model.about, "model": model.name, "accuracy": f"{right} of {len(found)}"})
        print(f"{file}: {right} of {len(found)} test digits")


if __name__ == "__main__":
    main()
