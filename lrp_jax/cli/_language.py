"""`lrp-jax text TEXT --model ...`: the relevance of tokens for the next token, or for generated ones."""

import json
import operator
from typing import Any, NamedTuple

import lrp_jax
from lrp_jax.cli._common import CommandError
from lrp_jax.cli._text_files import check_files, print_files, write_files

_TOP = 5  # predictions that are shown
_BUCKET = 32  # texts of similar length share compiled code
_MANY = 512  # tokens for which values are computed again, to save memory
_MAX_ROWS = 500  # of a table in an image


class Explained(NamedTuple):
    """What is explained.

    Attributes:
        ids: the ids of the tokens that the network reads, and of the explained ones that follow it.
        positions: for each explained token, the position of the token before it.
        targets: the ids of the explained tokens.
        others: the ids of tokens whose logits are subtracted, or None.
        prompt: the number of tokens of the user's text.
    """

    ids: Any
    positions: Any
    targets: Any
    others: Any
    prompt: int


class Found(NamedTuple):
    """The result.

    Attributes:
        score: the sum of the explained logits.
        tokens: relevance (tokens,).
        layers: relevance (layers + 1, tokens), or None.
        heads: relevance (layers, tokens, heads), or None.
    """

    score: float
    tokens: Any
    layers: Any
    heads: Any


def explain_language(options) -> int:
    """Explains the next token, or generated tokens. Returns the exit code."""
    check_files(options)
    _check_options(options)
    from lrp_jax.models import llama
    from lrp_jax.weights import WeightsError

    try:
        model = llama.load(options.model, options.dtype or "float32")
        if options.heads is not None and options.heads >= model.config.layers:
            raise CommandError(
                f"--heads {options.heads}: the network has layers 0 to {model.config.layers - 1}, or all."
            )
        prompt = model.tokens(options.sentence)
        probabilities, logits = _predictions(model, prompt)
        explained = _explained(model, prompt, logits, options)
        if options.png and (options.layers or options.heads is not None) and len(explained.ids) > _MAX_ROWS:
            raise CommandError(f"--png: an image shows tables of at most {_MAX_ROWS} tokens; use --html or --json.")
        found = _relevance(model, explained, options)
        _report(model, explained, found, _top(model, probabilities, logits), options)
    except (WeightsError, llama.TextError) as error:
        raise CommandError(error) from None
    return 0


def _check_options(options) -> None:
    """Raises CommandError if options contradict each other."""
    if options.generate is None and options.span is not None:
        raise CommandError("--span selects generated tokens; add --generate N.")
    if options.generate is not None and (options.target or options.contrast) is not None:
        raise CommandError("--target and --contrast choose the next token, so they cannot be used with --generate.")


def _predictions(model, prompt) -> tuple[Any, Any]:
    """The probabilities and the logits (vocabulary,) of the next token."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def predict(params, ids, mask):
        logits = model.logits(params, model.embed(params, ids), mask).astype(jnp.float32)
        return jax.nn.softmax(logits), logits

    ids = _padded(prompt)
    return tuple(map(np.asarray, jax.jit(predict)(model.params, ids, np.arange(len(ids)) < len(prompt))))


def _padded(ids) -> Any:
    """The ids with padding at the end, to a multiple of `_BUCKET`. No token attends to those after it."""
    import numpy as np

    return np.pad(ids, (0, -len(ids) % _BUCKET))


def _top(model, probabilities, logits) -> list[dict[str, Any]]:
    """The most probable next tokens."""
    import numpy as np

    best = np.argsort(-logits)[:_TOP].tolist()
    return [
        {"token": _text(model, i), "id": i, "probability": float(probabilities[i]), "logit": float(logits[i])}
        for i in best
    ]


def _text(model, i: int) -> str:
    return model.tokenizer.decode([i], skip_special_tokens=False)


def _explained(model, prompt, logits, options) -> Explained:
    """What the options ask for."""
    import numpy as np

    last = len(prompt) - 1
    if options.generate is None:
        target = int(np.argmax(logits)) if options.target is None else _token(model, "target", options.target, logits)
        others = None if options.contrast is None else np.array([_token(model, "contrast", options.contrast, logits)])
        return Explained(np.append(prompt, target), np.array([last]), np.array([target]), others, len(prompt))
    if (most := model.limit - len(prompt)) < options.generate:
        raise CommandError(
            f"--generate {options.generate}: the limit of the network leaves {most} tokens after the text."
        )
    made = model.generate(prompt, options.generate)
    first, end = options.span or (0, len(made))
    if end > len(made):
        raise CommandError(f"--span {first}:{end}: {len(made)} tokens were generated.")
    ids = np.concatenate([prompt, made[:end]])
    return Explained(ids, last + np.arange(first, end), made[first:end], None, len(prompt))


def _token(model, option: str, text: str, logits) -> int:
    """The id of the token with this text, with or without a space before it, whichever is more probable."""
    number = text.removeprefix("id:")
    if number != text:
        if not (number.isdecimal() and len(number) < 9 and int(number) < model.config.vocabulary):
            raise CommandError(f"--{option} {text!r:.50}: expected id:NUMBER, from 0 to {model.config.vocabulary - 1}.")
        return int(number)
    written = [model.tokenizer.encode(t, add_special_tokens=False).ids for t in (text, f" {text}")]
    if found := [ids[0] for ids in written if len(ids) == 1]:
        return max(found, key=lambda i: logits[i])
    parts = ", ".join(repr(part) for part in model.texts(written[1])) or "nothing"
    raise CommandError(f"--{option} {text!r:.50} is not one token of the network, but {parts:.200}; give one of these.")


def _relevance(model, explained: Explained, options) -> Found:
    """The relevance of the tokens, and, if asked for, of layers and heads."""
    import numpy as np

    from lrp_jax import composites

    composite = operator.attrgetter(options.preset or "attn_lrp")(composites)()
    count = int(explained.positions[-1]) + 1
    ids = _padded(explained.ids[:count])
    detailed = options.layers or options.heads is not None
    explain = lrp_jax.lrp(model.score, composite, argnums=1, layers=detailed, logits=True, remat=len(ids) > _MANY)
    found = explain(
        model.params, model.embed(model.params, ids), explained.positions, explained.targets, explained.others
    )
    tokens = np.asarray(found.relevance, np.float64).sum(-1)[:count]
    layers = model.by_layer(found.layers)[:, :count] if options.layers else None
    heads = model.by_head(found.layers)[:, :count] if options.heads is not None else None
    return Found(float(found.logits[0]), tokens, layers, heads)


def _report(model, explained: Explained, found: Found, top, options) -> None:
    """Prints the result and writes the files."""
    from lrp_jax.data import text, text_tables

    count, prompt = len(found.tokens), explained.prompt
    texts = model.texts(explained.ids.tolist())
    special = [i for i in range(count) if int(explained.ids[i]) in model.special]
    words = text.tokens(texts[:count], found.tokens, special)
    tables = list(_tables(words, texts[:count], found, options))
    title = _title(model, explained, found)
    shown = [f"{entry['probability']:7.1%}  {entry['token']!r}" for entry in top]

    def figure():
        drawn = text.figure(words, f"{title}\nnext: {', '.join(' '.join(line.split()) for line in shown)}")
        for table in tables:
            text_tables.draw_below(drawn, table)
        return drawn

    write_files(options, lambda: _html(words, tables, title, shown), figure)
    if options.json:
        print(json.dumps(_record(model, explained, found, texts, top, options), indent=2))
        return
    print("\n".join(["next token", *shown, "", title]))
    split = sum(start < prompt for start in text.word_starts(texts[:count]))
    vmax = text.limit(words)
    for part in filter(None, (words[:split], words[split:])):
        print(text.terminal(part, vmax=vmax))
    for table in tables:
        print(f"\n{text_tables.terminal(table)}")
    print_files(options)


def _title(model, explained: Explained, found: Found) -> str:
    """What is explained, with its score and the sum of the relevance."""
    several = len(explained.targets) > 1
    title = f"relevance for {model.tokenizer.decode(explained.targets.tolist(), skip_special_tokens=False)!r}"
    if explained.others is not None:
        title += f" rather than {_text(model, explained.others[0])!r}"
    score = "difference of logits" if explained.others is not None else "sum of logits" if several else "logit"
    return f"{title}: {score} {found.score:.3f}, sum of relevance {found.tokens.sum():.3f}"


def _tables(words, texts, found: Found, options):
    """The tables that are asked for."""
    from lrp_jax.data.text import joined
    from lrp_jax.data.text_tables import Table

    if found.layers is not None:
        yield Table("relevance at the input of each layer, and at the end", words, joined(texts, found.layers.T))
    if found.heads is not None:
        all_layers = options.heads < 0
        values = found.heads.sum(0) if all_layers else found.heads[options.heads]
        where = "all layers" if all_layers else f"layer {options.heads}"
        yield Table(f"relevance of each attention head of {where}", words, joined(texts, values))


def _html(words, tables, title: str, shown: list[str]) -> str:
    """The predictions, the coloured text and the tables."""
    import html

    from lrp_jax.data import text, text_tables

    parts = [f'<pre style="margin:0">{html.escape(chr(10).join(shown))}</pre>', f"<p>{html.escape(title)}</p>"]
    return "\n".join([*parts, text.html(words), *map(text_tables.html, tables)])


def _record(model, explained: Explained, found: Found, texts, top, options) -> dict[str, Any]:
    """The results for JSON."""
    ids = explained.ids.tolist()
    tokens = [
        {"token": texts[i], "id": ids[i], "relevance": amount, "generated": i >= explained.prompt}
        for i, amount in enumerate(found.tokens.tolist())
    ]
    targets = [
        {"token": _text(model, i), "id": i, "position": place}
        for i, place in zip(explained.targets.tolist(), explained.positions.tolist(), strict=True)
    ]
    record = {
        "model": options.model, "text": options.sentence, "preset": options.preset or "attn_lrp",
        "dtype": options.dtype or "float32", "predictions": top, "targets": targets,
    }  # fmt: skip
    if explained.others is not None:
        other = int(explained.others[0])
        record["contrast"] = {"token": _text(model, other), "id": other}
    if options.generate:
        record["text with generated tokens"] = "".join(texts)
    record |= {"score": found.score, "relevance": float(found.tokens.sum()), "tokens": tokens}
    if found.layers is not None:
        record["layers"] = found.layers.tolist()
    if found.heads is not None:
        record["heads"] = found.heads.tolist()
    return record
