"""zennit and captum on the same VGG, where they are installed."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np


def available() -> list[str]:
    """Those of zennit and captum that are installed, beside torch."""
    found = [name for name in ("zennit", "captum") if importlib.util.find_spec(name)]
    return found if importlib.util.find_spec("torch") else []


def vgg(params, pixels: int, dtype: str = "float32"):
    """The VGG of `lrp_jax.models.vgg` as torch modules with the same weights; channels last on a GPU."""
    import torch
    from torch import nn

    device = "cuda" if torch.cuda.is_available() else "cpu"

    class Network(nn.Sequential):
        def forward(self, x):
            for module in self:  # flattened without a module, for which captum would want a rule
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
            if name == "fc6":  # rows in the order height, width, channel there, channel first here
                side //= 2
                kernel = kernel.reshape(side, side, -1, kernel.shape[1]).transpose(2, 0, 1, 3).reshape(kernel.shape)
                modules.append(nn.MaxPool2d(2))
            module = nn.Linear(*kernel.shape)
            kernel = kernel.T
        module.weight, module.bias = (nn.Parameter(tensor(a), requires_grad=False) for a in (kernel, layer["bias"]))
        modules += [module, nn.ReLU()]
    network = Network(*modules[:-1]).eval()
    return network.to(memory_format=torch.channels_last) if device == "cuda" else network


def explainers(params, x: np.ndarray, target: int, low: float, high: float, dtype: str = "float32"):
    """By name, how torch, zennit and captum compute what is compared, from an image batch (N, H, W, 3)."""
    import torch

    network = vgg(params, x.shape[1], dtype)
    device = next(network.parameters()).device
    x = torch.tensor(x.transpose(0, 3, 1, 2).copy(), dtype=getattr(torch, dtype), device=device)
    x = x.contiguous(memory_format=torch.channels_last) if device.type == "cuda" else x
    one_hot = torch.eye(network[-1].out_features, dtype=x.dtype, device=device)[[target] * len(x)]

    def back(R):  # ready, and left where it is
        if device.type == "cuda":
            torch.cuda.synchronize()
        return R.detach()

    def gradient():
        leaf = x.clone().requires_grad_()
        return back(torch.autograd.grad((network(leaf) * one_hot).sum(), leaf)[0])

    def forward():
        with torch.no_grad():
            return back(network(x))

    found: dict[str, Callable] = {"torch: forward": forward, "torch: gradient": gradient}
    if "zennit" in available():
        _declare_operators()
        from zennit.attribution import Gradient
        from zennit.composites import EpsilonGammaBox, EpsilonPlusFlat

        def by(composite):
            def explain():
                with Gradient(network, composite) as attribute:
                    return back(attribute(x.clone(), one_hot)[1])

            return explain

        found["zennit: epsilon_gamma_box"] = by(EpsilonGammaBox(low=low, high=high))
        found["zennit: epsilon_plus_flat"] = by(EpsilonPlusFlat())
    if "captum" in available():
        from captum.attr import LRP
        from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule

        def with_rule(rule):
            def explain():
                for module in network:
                    if not isinstance(module, torch.nn.ReLU):
                        weighted = isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
                        module.rule = rule() if weighted else EpsilonRule()
                return back(LRP(network).attribute(x.clone().requires_grad_(), target=target))

            return explain

        found["captum: epsilon"] = with_rule(EpsilonRule)
        found["captum: gamma"] = with_rule(GammaRule)
    return found


def array(R) -> np.ndarray:
    """Relevance of images as ours is laid out."""
    return R.float().cpu().numpy().transpose(0, 2, 3, 1)


def _declare_operators() -> None:
    """Lets torchvision, which zennit imports, be imported where its compiled operators do not fit torch."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        spec = importlib.util.find_spec("torchvision")
        source = (Path(spec.origin).parent / "_meta_registrations.py").read_text()  # pyright: ignore
        global _library
        _library = torch.library.Library("torchvision", "DEF")
        for name in dict.fromkeys(re.findall(r"torchvision::(\w+)|register_meta\(\"(\w+)\"\)", source)):
            _library.define(f"{next(filter(None, name))}(Tensor a) -> Tensor")
