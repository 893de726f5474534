"""Builds vgg16_imagenette.safetensors: the published convolutions of VGG-16, and three dense layers for ten classes.

    python weights/train_vgg16_imagenette.py CONVOLUTIONS.npz IMAGENETTE DESTINATION.safetensors [--cache FOLDER]

CONVOLUTIONS.npz contains the 13 convolutions of torchvision as Conv_0..Conv_12/{kernel,bias} (HWIO, float32).
IMAGENETTE is the folder with train/<wnid>/* and val/<wnid>/*. Only the dense layers are trained. The output of the
convolutions for each image and its mirror image is computed once and stored in the cache.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from PIL import ImageOps
from tqdm import tqdm, trange

from lrp_jax import weights
from lrp_jax.data import images
from lrp_jax.models.vgg16_imagenette import MODEL

SEED, EPOCHS, BATCH, RATE, DECAY, DROPOUT = 0, 12, 128, 1e-4, 1e-2, 0.5
CONVOLUTIONS = [f"conv{i}_{j}" for i, stage in enumerate(MODEL.network.stages, 1) for j, _ in enumerate(stage, 1)]


class Head(nn.Module):
    """The dense layers of the network. While training, dropout precedes each hidden layer."""

    @nn.compact
    def __call__(self, x, train):
        for k, width in enumerate(MODEL.network.hidden, 6):
            x = nn.Dropout(DROPOUT, deterministic=not train)(x)
            x = nn.relu(nn.Dense(width, name=f"fc{k}")(x))
        return nn.Dense(MODEL.network.classes, name="fc8")(x)


def read_convolutions(path):
    """The convolutions under the layer names of the paper, in float16 as in the package."""
    with np.load(path) as arrays:
        return {
            name: {leaf: arrays[f"Conv_{i}/{leaf}"].astype(np.float16) for leaf in ("kernel", "bias")}
            for i, name in enumerate(CONVOLUTIONS)
        }


def pool5(convolutions):
    """Returns a function from images (N, 224, 224, 3) to the inputs of the first dense layer (N, 25088)."""
    convolutions = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), convolutions)
    network: Any = MODEL.network
    return jax.jit(lambda x: network.apply({"params": convolutions}, x, method="features").reshape(len(x), -1))


def features(convolutions, folder, mirrored, file):
    """Inputs of the first dense layer in float16 for all images of a folder, and their labels."""
    wnids = [wnid for wnid, _ in MODEL.classes]
    found = [(path, label) for label, wnid in enumerate(wnids) for path in sorted((folder / wnid).iterdir())]
    if not file.exists():
        run, rows = pool5(convolutions), []
        for start in trange(0, len(found), 4, desc=file.stem):
            crops = [MODEL.preprocessing.cut(images.read(path)) for path, _ in found[start : start + 4]]
            crops = map(ImageOps.mirror, crops) if mirrored else crops
            rows.append(np.asarray(run(np.stack([MODEL.preprocessing.normalize(c) for c in crops])), np.float16))
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.concatenate(rows))
    return np.load(file), np.array([label for _, label in found])


def train(x, y):
    """Trains the head with AdamW, cosine decay of the learning rate and cross-entropy; returns its params."""
    head, key = Head(), jax.random.key(SEED)
    params = head.init(key, jnp.zeros((1, x.shape[1])), train=False)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, steps), weight_decay=DECAY)

    def loss(params, x, y, key):
        logits: Any = head.apply(params, x, train=True, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def update(params, state, x, y, key):
        value, grads = jax.value_and_grad(loss)(params, x, y, key)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, order = optimizer.init(params), np.random.default_rng(SEED)
    with tqdm(total=steps, desc="head") as progress:
        for epoch in range(EPOCHS):
            for batch in np.array_split(order.permutation(len(x)), len(x) // BATCH):
                key, step_key = jax.random.split(key)
                params, state, value = update(params, state, x[batch].astype(np.float32), y[batch], step_key)
                progress.set_postfix(epoch=epoch, loss=f"{value:.3f}", refresh=False)
                progress.update()
    return jax.tree.map(lambda p: np.asarray(p, np.float16), params["params"])


def accuracy(params, x, y):
    """The fraction of images whose largest logit belongs to the true class."""
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    logits: Any = Head().apply({"params": params}, x.astype(np.float32), train=False)
    return float((np.asarray(logits).argmax(-1) == y).mean())


def main():
    """Computes features, trains the head, saves the weights and prints the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("convolutions", type=Path)
    parser.add_argument("imagenette", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("imagenette-features"))
    options = parser.parse_args()
    if options.destination.exists():
        parser.error(f"{options.destination} exists; choose another file, or move or delete it")
    convolutions = read_convolutions(options.convolutions)
    plain, labels = features(convolutions, options.imagenette / "train", False, options.cache / "train.npy")
    mirrored, _ = features(convolutions, options.imagenette / "train", True, options.cache / "train_mirrored.npy")
    validation, truth = features(convolutions, options.imagenette / "val", False, options.cache / "val.npy")
    head = train(np.concatenate([plain, mirrored]), np.concatenate([labels, labels]))
    fraction = accuracy(head, validation, truth)
    weights.save(
        options.destination, convolutions | head, {**MODEL.about, "accuracy": f"{fraction:.4f} of {len(truth)}"}
    )
    print(f"{options.destination}: {fraction:.2%} of {len(truth)} validation images")


if __name__ == "__main__":
    main()
