"""VGG-16 for ten classes: real ImageNet convolutions, dense layers trained for Imagenette. See weights/README.md."""

from lrp_jax.images import Preprocessing
from lrp_jax.models.pretrained import Pretrained
from lrp_jax.models.vgg import VGG

MODEL = Pretrained(
    name="vgg16_imagenette",
    network=VGG(classes=10, hidden=(256, 256)),
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
        "convolutions": "Visual Geometry Group, University of Oxford, CC BY 4.0; as ported by torchvision "
        "(IMAGENET1K_V1), BSD-3-Clause; float16",
        "dense layers": "trained by weights/train_vgg16_imagenette.py, Apache-2.0; float16",
    },
)
