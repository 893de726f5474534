"""`lrp-jax text SENTENCE --against ...`: the relevance of words for the similarity of two sentences."""

import json
from typing import Any

import lrp_jax
from lrp_jax.cli._common import CommandError
from lrp_jax.cli._text_files import check_files, print_files, write_files


def explain_similarity(options) -> int:
    """Explains which words make two sentences similar. Returns the exit code."""
    check_files(options)
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
    write_files(options, lambda: text.html(words), lambda: text.figure(words, title))
    if options.json:
        print(json.dumps(record, indent=2))
        return 0
    for i, (other, score) in enumerate(zip(options.against, scores, strict=True)):
        print(f"{i:3} {score:7.3f}  {other}")
    print(f"\n{title}, sum of relevance {record['relevance']:.3f}\n{text.terminal(words)}")
    print_files(options)
    return 0


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
