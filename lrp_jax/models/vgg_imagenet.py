"""VGG networks for the 1000 classes of ImageNet, with the weights of torchvision or Keras."""

from lrp_jax.data.images import Preprocessing
from lrp_jax.models.classes import imagenet_classes
from lrp_jax.models.pretrained import Pretrained
from lrp_jax.models.vgg import STAGES, VGG, keras_layouts, layouts
from lrp_jax.weights import Remote

PRESETS = ("epsilon_gamma_box", "epsilon_plus_flat", "epsilon_plus", "overview_vgg16")


def _torchvision(name: str, accuracy: float, digest: str) -> Pretrained:
    depth, _, norm = name.removeprefix("vgg").partition("_")
    network = VGG(stages=STAGES[int(depth)], batch_norm=bool(norm), window=(7, 7))
    return Pretrained(
        name=name,
        network=network,
        classes=imagenet_classes(),
        preprocessing=Preprocessing(),
        presets=PRESETS,
        about={
            "what": f"VGG-{depth}{' with BatchNorm' if norm else ''}, {accuracy:.2f} % of ImageNet's validation images",
            "weights": "torchvision (IMAGENET1K_V1), trained by its authors",
            "licence": "BSD-3-Clause",
        },
        top=tuple(network.top),
        layouts=layouts(network),
        remote=Remote(f"https://download.pytorch.org/models/{name}-{digest[:8]}.pth", f"sha256:{digest}"),
    )


def _keras(depth: int, accuracy: float, digest: str) -> Pretrained:
    network = VGG(stages=STAGES[depth], window=(7, 7))
    file = f"vgg{depth}/vgg{depth}_weights_tf_dim_ordering_tf_kernels.h5"
    return Pretrained(
        name=f"vgg{depth}_keras",
        network=network,
        classes=imagenet_classes(),
        preprocessing=Preprocessing.caffe(),
        presets=PRESETS,
        about={
            "what": f"VGG-{depth} of the paper, {accuracy:.1f} % of ImageNet's validation images",
            "weights": "Visual Geometry Group, University of Oxford; ported by Keras. The input is BGR and not scaled",
            "licence": "CC BY 4.0",
        },
        top=tuple(network.top),
        layouts=keras_layouts(network),
        remote=Remote(f"https://storage.googleapis.com/tensorflow/keras-applications/{file}", f"md5:{digest}"),
    )


MODELS = (
    _torchvision("vgg11", 69.02, "8a719046"),
    _torchvision("vgg13", 69.93, "19584684"),
    _torchvision("vgg16", 71.59, "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"),
    _torchvision("vgg19", 72.38, "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"),
    _torchvision("vgg11_bn", 70.37, "6002323d"),
    _torchvision("vgg13_bn", 71.59, "abd245e5"),
    _torchvision("vgg16_bn", 73.36, "6c64b3138f2f4fcb3bcc4cafde11619c4f440eb1631787e93a682fd88305888a"),
    _torchvision("vgg19_bn", 74.22, "c79401a0"),
    _keras(16, 71.3, "64373286793e3c8b2b4e3219cbf3544b"),
    _keras(19, 71.3, "cbe5617147190e668d6c5d5026f83318"),
)
"""The digests that the publishers state: eight digits in torchvision's file names, a complete MD5 from Keras."""
