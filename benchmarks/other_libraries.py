"""The same VGG explained by zennit and captum, if these packages are installed."""

import functools
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np


def available() -> list[str]:
    """The installed packages among zennit and captum; none without torch."""
    found = [name for name in ("zennit", "captum") if importlib.util.find_spec(name)]
    return found if importlib.util.find_spec("torch") else []


def vgg(params, pixels: int, dtype: str = "float32"):
    """The VGG of `lrp_jax.models.vgg` as torch modules with the same weights; channels last on a GPU."""
    import torch
    from torch import nn

    device = "cuda" if torch.cuda.is_available() else "cpu"

    class Network(nn.Sequential):
        def forward(self, x):
            for module in self:  # no Flatten module, because captum would need a rule for it
                x = module(x.flatten(1) if isinstance(module, nn.Linear) else x)
            return x

    def tensor(array):
        return torch.tensor(np.ascontiguousarray(array, np.float32), dtype=getattr(torch, dtype), device=device)

    modules, block, side = [], "1", pixels
    for name, layer in params["params"].items():
        kernel = np.asarray(layer["kernel"], np.float32)
        if name.startswith("conv"):
            if name[4] != block:
                modules.append(nn.MaxPool2d(2))
                block, side = name[4], side // 2
            module = nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=1)
            kernel = kernel.transpose(3, 2, 0, 1)
        else:
            if name == "fc6":  # from rows in the order height, width, channel to channel, height, width
                side //= 2
                kernel = kernel.reshape(side, side, -1, kernel.shape[1]).transpose(2, 0, 1, 3).reshape(kernel.shape)
                modules.append(nn.MaxPool2d(2))
            module = nn.Linear(*kernel.shape)
            kernel = kernel.T
        module.weight, module.bias = (nn.Parameter(tensor(a), requires_grad=False) for a in (kernel, layer["bias"]))
        modules += [module, nn.ReLU()]
    network = Network(*modules[:-1]).eval()
    return network.to(memory_format=torch.channels_last) if device == "cuda" else network


def functions(params, x: np.ndarray, target: int, low: float, high: float, dtype: str = "float32"):
    """The compared functions of torch, zennit and captum by name, for a batch of images (N, H, W, 3)."""
    import torch

    network = vgg(params, x.shape[1], dtype)
    device = next(network.parameters()).device
    images = torch.tensor(x.transpose(0, 3, 1, 2).copy(), dtype=getattr(torch, dtype), device=device)
    images = images.contiguous(memory_format=torch.channels_last) if device.type == "cuda" else images
    one_hot = torch.eye(network[-1].out_features, dtype=images.dtype, device=device)[[target] * len(images)]
    found = _torch(network, images, one_hot)
    if "zennit" in available():
        found |= _zennit(network, images, one_hot, low, high)
    if "captum" in available():
        found |= _captum(network, images, target)
    return {name: functools.partial(_finish, function) for name, function in found.items()}


def _finish(function: Callable):
    """Calls the function and waits for its result, which stays on its device."""
    import torch

    R = function()
    if R.device.type == "cuda":
        torch.cuda.synchronize()
    return R.detach()


def _torch(network, x, one_hot) -> dict[str, Callable]:
    """Forward pass and gradient of torch."""
    import torch

    def gradient():
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad((network(leaf) * one_hot).sum(), leaf)[0]

    def forward():
        with torch.no_grad():
            return network(x)

    return {"torch: forward": forward, "torch: gradient": gradient}


def _zennit(network, x, one_hot, low: float, high: float) -> dict[str, Callable]:
    """Relevance by composites of zennit."""
    _declare_operators()
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonGammaBox, EpsilonPlusFlat

    def explain(composite):
        with Gradient(network, composite) as attribute:
            return attribute(x.clone(), one_hot)[1]

    return {
        "zennit: epsilon_gamma_box": functools.partial(explain, EpsilonGammaBox(low=low, high=high)),
        "zennit: epsilon_plus_flat": functools.partial(explain, EpsilonPlusFlat()),
    }


def _captum(network, x, target: int) -> dict[str, Callable]:
    """Relevance by rules of captum."""
    import torch
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule

    def explain(rule):
        for module in network:
            if not isinstance(module, torch.nn.ReLU):
                weighted = isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
                module.rule = rule() if weighted else EpsilonRule()
        return LRP(network).attribute(x.clone().requires_grad_(), target=target)

    return {
        "captum: epsilon": functools.partial(explain, EpsilonRule),
        "captum: gamma": functools.partial(explain, GammaRule),
    }


def array(R) -> np.ndarray:
    """Relevance of images as a NumPy array (N, H, W, 3)."""
    return R.float().cpu().numpy().transpose(0, 2, 3, 1)


def _declare_operators() -> None:
    """Lets zennit import torchvision even if the compiled operators of torchvision do not match torch."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        spec = importlib.util.find_spec("torchvision")
        assert spec is not None
        assert spec.origin is not None
        source = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
        global _library
        _library = torch.library.Library("torchvision", "DEF")
        for name in dict.fromkeys(re.findall(r"torchvision::(\w+)|register_meta\(\"(\w+)\"\)", source)):
            _library.define(f"{next(filter(None, name))}(Tensor a) -> Tensor")
