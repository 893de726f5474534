"""Three networks for handwritten digits, 28 x 28 pixels in [0, 1], in Flax linen. See weights/README.md."""

import flax.linen as nn
import jax

from lrp_jax.data.images import Preprocessing
from lrp_jax.models.mlp import MLP
from lrp_jax.models.pretrained import Pretrained


class LeNet(nn.Module):
    """Two 5x5 convolutions, each with a ReLU and a 2x2 max-pool, and two dense layers (after LeCun et al. 1998)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits (..., 10) of images (..., 28, 28, 1)."""
        for i, width in enumerate((16, 32), 1):
            x = nn.relu(nn.Conv(width, (5, 5), name=f"conv{i}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(*x.shape[:-3], -1)
        x = nn.relu(nn.Dense(128, name="fc1")(x))
        return nn.Dense(10, name="fc2")(x)


def _digits(name: str, network: nn.Module, top: str, what: str, presets: tuple[str, ...]) -> Pretrained:
    return Pretrained(
        name=name,
        network=network,
        classes=tuple((f"digit_{i}", str(i)) for i in range(10)),
        preprocessing=Preprocessing(resize=28, crop=28, mean=(0.0,), std=(1.0,), grey=True),
        presets=presets,
        about={
            "what": f"{what}, for handwritten digits, white on black",
            "weights": "trained by weights/train_mnist.py on MNIST (LeCun, Cortes, Burges, CC BY-SA 3.0)",
            "licence": "Apache-2.0",
        },
        any_size=False,
        top=(top,),
    )


DENSE = ("epsilon_plus", "epsilon_plus_flat")
CONVOLUTIONAL = ("epsilon_gamma_box", "epsilon_plus_flat", "epsilon_plus")

MODELS = (
    _digits("mnist_dnn", MLP((256, 10), axes=3), "fc2", "Two dense layers, 784-256-10", DENSE),
    _digits("mnist_dnn_wide", MLP((1024, 10), axes=3), "fc2", "Two dense layers, 784-1024-10", DENSE),
    _digits("mnist_cnn", LeNet(), "fc2", "LeNet-like, two convolutions and two dense layers", CONVOLUTIONAL),
)
