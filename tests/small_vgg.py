"""A small VGG network, and random weights of VGG networks in the layout of torchvision."""

import numpy as np
import torch_files

from lrp_jax.data.images import Preprocessing
from lrp_jax.models.pretrained import Pretrained
from lrp_jax.models.vgg import VGG, keras_layouts, layouts


def small(batch_norm=False, keras=False):
    """A network for images of 8 x 8 pixels."""
    network = VGG(classes=5, hidden=(7, 6), stages=((3,), (4, 4)), batch_norm=batch_norm, window=(2, 2))
    return Pretrained(
        name="small",
        network=network,
        classes=tuple((f"n{i}", f"class {i}") for i in range(5)),
        preprocessing=Preprocessing(resize=8, crop=8, multiple=4),
        presets=("epsilon_plus_flat",),
        about={"what": "a test", "licence": "none"},
        top=tuple(network.top),
        layouts=keras_layouts(network) if keras else layouts(network),
    )


def torch_state(stages, hidden, window, batch_norm, dtype=np.float64):
    """Random tensors with the names and shapes of torchvision."""
    rng, state, position, width = np.random.default_rng(0), {}, 0, 3

    def normal(*shape, scale=0.05):
        return rng.standard_normal(shape, np.float32).astype(dtype) * np.asarray(scale, dtype)

    for widths in stages:
        for out in widths:
            state[f"features.{position}.weight"] = normal(out, width, 3, 3, scale=(2 / (9 * width)) ** 0.5)
            state[f"features.{position}.bias"] = normal(out)
            if batch_norm:
                position += 1
                state[f"features.{position}.weight"] = 1 + normal(out)
                state[f"features.{position}.bias"] = normal(out)
                state[f"features.{position}.running_mean"] = normal(out)
                state[f"features.{position}.running_var"] = 1 + np.abs(normal(out))
                state[f"features.{position}.num_batches_tracked"] = np.array(3)
            position, width = position + 2, out
        position += 1
    width *= window[0] * window[1]
    for k, out in enumerate(hidden):
        state[f"classifier.{3 * k}.weight"] = normal(out, width, scale=(2 / width) ** 0.5)
        state[f"classifier.{3 * k}.bias"] = normal(out)
        width = out
    return state


def write_torch(path, model):
    network = model.network
    torch_files.write(path, torch_state(network.stages, (7, 6, 5), network.window, network.batch_norm))
    return path
