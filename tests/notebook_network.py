"""Importing this file replaces VGG-16 in a notebook by the same network for images of 32 pixels instead of 224."""

import dataclasses

from lrp_jax import models
from lrp_jax.data.images import Preprocessing
from lrp_jax.models.pretrained import Pretrained

_load = models.load


class SmallImages(Pretrained):
    """The last max-pool has one position instead of 7 x 7: `fc6` has the weights of the one at the centre."""

    def params(self, *args, **kwargs):
        params = _load(self.name).params(*args, **kwargs)
        kernel = params["fc6"]["kernel"]
        centre = kernel.reshape(7, 7, -1, kernel.shape[-1])[3, 3]
        return params | {"fc6": params["fc6"] | {"kernel": centre}}


def load(name: str) -> Pretrained:
    model = _load(name)
    if name != "vgg16_imagenette":
        return model
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    network = model.network.clone(window=(1, 1))
    return SmallImages(**fields | {"network": network, "preprocessing": Preprocessing(resize=36, crop=32)})


models.load = load
