"""Trains the networks for handwritten digits on MNIST: two dense networks and one convolutional network.

    python weights/train_mnist.py MNIST DESTINATION_FOLDER

MNIST is a folder with the four original files. Missing files are downloaded to it.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from lrp_jax import weights
from lrp_jax.data import digits
from lrp_jax.models.mnist import MODELS

SEED, EPOCHS, BATCH, RATE, DECAY, SHIFT = 0, 20, 128, 2e-3, 1e-2, 2


def shift(images, key):
    """Moves each image by up to SHIFT pixels along both axes and fills the border with black."""
    padded = jnp.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    starts = jax.random.randint(key, (len(images), 2), 0, 2 * SHIFT + 1)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (28, 28, 1)))(padded, starts)


def train(network, train_part):
    """Trains with AdamW, cosine decay of the learning rate and cross-entropy on shifted digits; returns params."""
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
        value, grads = jax.value_and_grad(loss)(params, shift(x, key), y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, order = optimizer.init(params), np.random.default_rng(SEED)
    with tqdm(total=steps) as progress:
        for epoch in range(EPOCHS):
            for batch in np.split(order.permutation(len(x))[: len(x) // BATCH * BATCH], len(x) // BATCH):
                key, step_key = jax.random.split(key)
                params, state, value = update(params, state, x[batch], y[batch], step_key)
                progress.update()
                progress.set_postfix(epoch=epoch, loss=f"{value:.4f}", refresh=False)
    return jax.tree.map(lambda p: np.asarray(p, np.float16), params)


def main():
    """Trains and saves all networks, and prints their accuracy on the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("destination", type=Path)
    options = parser.parse_args()
    files = {model.name: options.destination / f"{model.name}.safetensors" for model in MODELS}
    for file in files.values():
        if file.exists():
            parser.error(f"{file} exists; choose another folder, or move or delete the file")
    options.destination.mkdir(parents=True, exist_ok=True)
    train_part, test_part = (digits.fetch(options.mnist, part) for part in ("train", "test"))
    for model, file in zip(MODELS, files.values(), strict=True):
        params = train(model.network, train_part)
        full = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
        predictions = jax.jit(model.apply)(full, test_part.images).argmax(-1)
        correct = int((np.asarray(predictions) == test_part.labels).sum())
        weights.save(file, params, {**model.about, "model": model.name, "accuracy": f"{correct} of {len(predictions)}"})
        print(f"{file}: {correct} of {len(predictions)} test images")


if __name__ == "__main__":
    main()
