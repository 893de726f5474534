"""Relevance of small language models by LXT, and the differences of `composites.lxt` from it.

`python benchmarks/lxt_reference.py` prints the table of docs/conventions.md. With `--write`, it also writes
tests/lxt_reference.json. It needs torch, transformers and LXT (github.com/rachtibat/LRP-eXplains-Transformers); the
file was written with torch 2.13.0, transformers 5.9.0 and LXT at commit f043441.

LXT changes the modules of transformers for the whole process, so each model and preset has a process of its own.
"""

import argparse
import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import lxt_models  # noqa: E402

SOURCE = (
    "Relevance and logits that LXT computed for random weights (benchmarks/lxt_reference.py). LXT, LRP-eXplains-"
    "Transformers, commit f043441, Copyright (c) 2024 Fraunhofer-Gesellschaft and the authors, Clear BSD License:"
    " github.com/rachtibat/LRP-eXplains-Transformers/blob/main/LICENSE. This file contains none of its code."
)
REFERENCE = ROOT / "tests" / "lxt_reference.json"
PRESETS = ("attn_lrp", "cp_lrp")


def run(name: str, preset: str, casts: bool) -> dict:
    """Shapes of parameters, logits, target and relevance of one model by LXT.

    Args:
        name: the model.
        preset: `attn_lrp` or `cp_lrp`.
        casts: whether normalizations, the softmax and angles are computed in float32, as LXT and transformers do.
    """
    import torch

    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    patch(module, name, preset)
    if not casts:
        torch.float32 = torch.float = torch.float64
        torch.Tensor.float = torch.Tensor.double
    model = model_of(module, name).double().eval()
    tied = {id(parameter): key for key, parameter in model.named_parameters()}
    state = {key: value for key, value in model.named_parameters() if tied[id(value)] == key}
    shapes = {key: list(value.shape) for key, value in sorted(state.items())}
    with torch.no_grad():
        for key, value in lxt_models.weights(shapes).items():
            state[key].copy_(torch.from_numpy(value))
    x = torch.from_numpy(lxt_models.embeddings(lxt_models.CONFIGS[name])).requires_grad_()
    logits = model(inputs_embeds=x).logits
    logits = logits if name == "bert" else logits[:, -1]
    target = int(logits.argmax())
    logits[0, target].backward()
    return {
        "shapes": shapes, "logits": logits.tolist(), "target": target, "relevance": (x * x.grad).tolist(),
    }  # fmt: skip


def model_of(module, name):
    """The model with its configuration."""
    classes = {
        "llama": ("LlamaConfig", "LlamaForCausalLM"),
        "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
        "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
        "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
        "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
        "bert": ("BertConfig", "BertForSequenceClassification"),
    }
    config, model = (getattr(module, each) for each in classes[name])
    given = {"attn_implementation": "eager", "use_cache": False}
    if name == "bert":  # LXT contains a copy of an earlier BERT, which reads these
        given["position_embedding_type"] = "absolute"
        module.BertModel.get_head_mask = lambda self, mask, layers: [mask] * layers
    config = config(**lxt_models.CONFIGS[name], **given)
    return model(config)


def patch(module, name, preset):
    """Applies the patches of LXT. For models without CP-LRP in LXT, the same patches as for the other models."""
    import torch
    from lxt.efficient import monkey_patch, patches

    models = importlib.import_module(f"lxt.efficient.models.{name}")
    if preset == "attn_lrp":
        return monkey_patch(module, models.attnLRP)
    if hasattr(models, "cp_LRP"):
        return monkey_patch(module, models.cp_LRP)
    of = lambda function, **options: functools.partial(patches.patch_method, function, **options)
    if name == "qwen3_moe":
        return monkey_patch(module, {
            module.Qwen3MoeMLP: of(patches.cp_gated_mlp_forward),
            module.Qwen3MoeExperts: of(cp_experts_forward),
            module.Qwen3MoeRMSNorm: of(patches.rms_norm_forward),
            module: patches.patch_cp_attention,
        })  # fmt: skip
    return monkey_patch(module, {
        torch.nn.LayerNorm: of(patches.layer_norm_forward),
        type(module.ACT2FN["gelu"]): of(patches.non_linear_forward, keep_original=True),
        torch.nn.Tanh: of(patches.non_linear_forward, keep_original=True),
        module: patches.patch_cp_attention,
    })  # fmt: skip


def cp_experts_forward(self, hidden_states, top_k_index, top_k_weights):
    """The experts of Qwen3-MoE. Gates and router are constant."""
    import torch

    gate, up = torch.einsum("ti,eoi->teo", hidden_states, self.gate_up_proj).chunk(2, -1)
    each = torch.einsum("tei,eoi->teo", self.act_fn(gate.detach()) * up, self.down_proj)
    chosen = torch.take_along_dim(each, top_k_index[..., None], 1)
    return (chosen * top_k_weights.detach()[..., None]).sum(1)


def run_alone(name: str, preset: str, casts: bool) -> dict:
    """`run` in another process."""
    command = [sys.executable, __file__, "--run", name, preset, str(int(casts))]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def ours(name: str, shapes: dict, preset: str, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and relevance by lrp_jax."""
    import jax

    import lrp_jax

    jax.config.update("jax_enable_x64", True)
    params = lxt_models.weights(shapes)
    x = lxt_models.embeddings(lxt_models.CONFIGS[name])
    function = lxt_models.logits(name)
    composite = getattr(lrp_jax.composites.lxt, preset)()
    return np.asarray(function(params, x)), np.asarray(lrp_jax.lrp(function, composite)(params, x, target=target))


def difference(found, expected) -> float:
    """The largest absolute difference, relative to the largest absolute value."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def main():
    """Runs all models by both presets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write tests/lxt_reference.json")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        name, preset, casts = arguments.run
        print(json.dumps(run(name, preset, casts == "1")))
        return
    print("| model | preset | logits | relevance | relevance, with LXT's float32 |\n|---|---|---|---|---|")
    reference = {}
    for name in lxt_models.CONFIGS:
        found = {preset: run_alone(name, preset, False) for preset in PRESETS}
        one = found["attn_lrp"]
        reference[name] = {
            "shapes": one["shapes"], "logits": one["logits"], "target": one["target"],
            **{preset: found[preset]["relevance"] for preset in PRESETS},
        }  # fmt: skip
        for preset in PRESETS:
            logits, relevance = ours(name, one["shapes"], preset, one["target"])
            cast = run_alone(name, preset, True)
            values = (
                difference(logits, found[preset]["logits"]), difference(relevance, found[preset]["relevance"]),
                difference(relevance, cast["relevance"]),
            )  # fmt: skip
            print(f"| {name} | `{preset}` |", " | ".join(f"{value:.0e}" for value in values), "|", flush=True)
    if arguments.write:
        REFERENCE.write_text(json.dumps({"source": SOURCE, "models": reference}) + "\n")


if __name__ == "__main__":
    main()
