"""VGG networks (Simonyan & Zisserman 2015, table 1) in Flax linen, channels last."""

import flax.linen as nn
import jax

VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """3x3 convolutions in stages, each stage closed by a 2x2 max-pool, then dense layers.

    Parameters are named as in the paper: `conv1_1` ... `conv5_3`, `fc6`, `fc7`, `fc8`, each with a `kernel`
    (HWIO, or in x out) and a `bias`.

    Attributes:
        classes: number of logits.
        hidden: widths of the dense layers before the last (4096, 4096 in the paper).
        stages: widths of the convolutions of each stage.
    """

    classes: int = 1000
    hidden: tuple[int, ...] = (4096, 4096)
    stages: tuple[tuple[int, ...], ...] = VGG16_STAGES

    def setup(self):
        for i, widths in enumerate(self.stages, 1):
            for j, width in enumerate(widths, 1):
                setattr(self, f"conv{i}_{j}", nn.Conv(width, (3, 3), padding=1))
        for k, width in enumerate((*self.hidden, self.classes), 6):
            setattr(self, f"fc{k}", nn.Dense(width))

    def features(self, x: jax.Array) -> jax.Array:
        """What the dense layers see: the last max-pool of images (..., H, W, 3), flattened to (..., features)."""
        for i, widths in enumerate(self.stages, 1):
            for j, _ in enumerate(widths, 1):
                x = nn.relu(getattr(self, f"conv{i}_{j}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return x.reshape(*x.shape[:-3], -1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (..., classes) of images (..., H, W, 3)."""
        x = self.features(x)
        top = 6 + len(self.hidden)
        for k in range(6, top):
            x = nn.relu(getattr(self, f"fc{k}")(x))
        return getattr(self, f"fc{top}")(x)
