"""VGG-16 for ten classes: convolutions trained on ImageNet, dense layers on Imagenette. See weights/README.md."""

from lrp_jax.data.images import Preprocessing
from lrp_jax.models.pretrained import Pretrained
from lrp_jax.models.vgg import VGG

MODEL = Pretrained(
    name="vgg16_imagenette",
    network=VGG(classes=10, hidden=(256, 256), window=(7, 7)),
    classes=(
        ("n01440764", "tench"),
        ("n02102040", "English springer"),
        ("n02979186", "cassette player"),
        ("n03000684", "chain saw"),
        ("n03028079", "church"),
        ("n03394916", "French horn"),
        ("n03417042", "garbage truck"),
        ("n03425413", "gas pump"),
        ("n03445777", "golf ball"),
        ("n03888257", "parachute"),
    ),
    preprocessing=Preprocessing(),
    presets=("epsilon_gamma_box", "epsilon_plus_flat", "epsilon_plus", "overview_vgg16"),
    about={
        "what": "VGG-16: the 13 convolutions of ImageNet, and dense layers 25088-256-256-10 trained for the ten "
        "classes of Imagenette. It knows these ten classes and no others.",
        "convolutions": "trained by the authors of torchvision (IMAGENET1K_V1); float16",
        "dense layers": "trained by weights/train_vgg16_imagenette.py; float16",
        "licence": "BSD-3-Clause (convolutions), Apache-2.0 (dense layers)",
    },
    top=("fc6", "fc7", "fc8"),
    wider="mobilenet_v2",
)

MODELS = (MODEL,)
