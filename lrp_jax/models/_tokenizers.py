"""Tokenizers of language models: tokenizer.json, or the byte-level BPE in the header of a GGUF file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lrp_jax.guard import reading
from lrp_jax.models.minilm import TextError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


class _Split(NamedTuple):
    """How a text is split before the BPE.

    Attributes:
        pattern: the regular expression of the parts. None: that of GPT-2.
        single_digits: whether each digit is a part.
        whole: whether a part that is a token stays whole, without regard to the merges.
    """

    pattern: str | None = None
    single_digits: bool = False
    whole: bool = False


_SPLITS = {
    "gpt-2": _Split(),
    "smollm": _Split(single_digits=True),
    "llama-bpe": _Split(_LLAMA3, whole=True),
    "qwen2": _Split(_LLAMA3.replace("{1,3}", "")),
}
"""The splits by their names in GGUF files."""

_CONTROL, _USER_DEFINED = 3, 4
"""The types of special tokens in GGUF files."""


def from_json(file: Path) -> Any:
    """The tokenizer in tokenizer.json.

    Raises:
        TextError: the file is missing or damaged, or the package tokenizers is missing.
    """
    library = _library()
    with reading(file, "not a readable tokenizer", TextError, end="."):
        tokenizer = library.Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def from_gguf(facts: Mapping[str, Any], file: Path) -> Any:
    """The tokenizer in the header of a GGUF file; or the file tokenizer.json beside it, if there is one.

    Raises:
        TextError: the tokenizer is damaged or of another kind, or the package tokenizers is missing.
    """
    if (beside := file.parent / "tokenizer.json").exists():
        return from_json(beside)
    library = _library()
    kind, split = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _SPLITS:
        raise TextError(
            f"{file}: its tokenizer is {kind!r:.50} ({split!r:.50}); supported is gpt2 ({', '.join(_SPLITS)}). Put the "
            "file tokenizer.json beside it."
        )
    with reading(file, "not a readable tokenizer", TextError, end="."):
        return _byte_level_bpe(library, facts, _SPLITS[split])


def _byte_level_bpe(library: Any, facts: Mapping[str, Any], split: _Split) -> Any:
    from tokenizers import decoders, models, pre_tokenizers, processors

    tokens, merges = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.merges"]
    kinds = facts.get("tokenizer.ggml.token_type", [])
    numbers = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = library.Tokenizer(models.BPE(numbers, pairs, ignore_merges=split.whole))
    before: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split.single_digits else []
    if split.pattern:
        before.append(pre_tokenizers.Split(library.Regex(split.pattern), "isolated"))
    before.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(before)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=False) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens([library.AddedToken(token, normalized=False, special=True) for token in special])
    first = facts.get("tokenizer.ggml.bos_token_id")
    if facts.get("tokenizer.ggml.add_bos_token") is True and first is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[first]} $A", special_tokens=[(tokens[first], first)]
        )
    return tokenizer


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise TextError("text needs the package tokenizers: pip install 'lrp_jax[text]'.") from None
    return tokenizers
