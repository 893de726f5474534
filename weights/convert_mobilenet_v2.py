"""Rebuilds mobilenet_v2.safetensors from torchvision's mobilenet_v2-b0353104.pth, without PyTorch.

python weights/convert_mobilenet_v2.py mobilenet_v2-b0353104.pth DESTINATION.safetensors
"""

import argparse
from pathlib import Path

from lrp_jax import weights
from lrp_jax.models.mobilenet_v2 import MODEL, STAGES


def names():
    """Our name of each convolution, with torchvision's of the convolution and of its BatchNorm."""
    yield "conv_first", "features.0.0", "features.0.1"
    blocks = [(f"block{i}_{j}", t) for i, (t, _, n, _) in enumerate(STAGES, 1) for j in range(1, n + 1)]
    for k, (block, expansion) in enumerate(blocks, 1):
        layers = ["expand", "depthwise"] if expansion > 1 else ["depthwise"]
        for m, layer in enumerate(layers):
            yield f"{block}/{layer}", f"features.{k}.conv.{m}.0", f"features.{k}.conv.{m}.1"
        m = len(layers)
        yield f"{block}/project", f"features.{k}.conv.{m}", f"features.{k}.conv.{m + 1}"
    yield "conv_last", f"features.{len(blocks) + 1}.0", f"features.{len(blocks) + 1}.1"


def converted(torch):
    """The tensors of a state dict under our names: HWIO kernels, dense kernels in x out."""
    for name, conv, norm in names():
        yield f"{name}/kernel", torch.pop(f"{conv}.weight").transpose(2, 3, 1, 0)
        yield f"{name}_norm/scale", torch.pop(f"{norm}.weight")
        yield f"{name}_norm/bias", torch.pop(f"{norm}.bias")
        yield f"batch_stats/{name}_norm/mean", torch.pop(f"{norm}.running_mean")
        yield f"batch_stats/{name}_norm/var", torch.pop(f"{norm}.running_var")
        torch.pop(f"{norm}.num_batches_tracked")
    yield "classifier/kernel", torch.pop("classifier.1.weight").T
    yield "classifier/bias", torch.pop("classifier.1.bias")
    if torch:
        raise SystemExit(f"tensors without a place: {', '.join(torch)}")


def main():
    """Reads, renames, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch", type=Path)
    parser.add_argument("destination", type=Path)
    options = parser.parse_args()
    if options.destination.exists():
        parser.error(f"{options.destination} exists; name another file, or move it away first")
    weights.save(options.destination, dict(converted(weights.read_torch(options.torch))), MODEL.about)


if __name__ == "__main__":
    main()
