"""All readers of files and answers of servers, with valid contents to damage."""

import argparse
import collections
import contextlib
import gzip
import hashlib
import io
import json
import pickle
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import h5py
import language_models
import numpy as np
from PIL import Image
from raw_server import FAULTS, OK, serving
from torch_files import opcodes, write

from lrp_jax import weights
from lrp_jax.data import digits, images
from lrp_jax.guard import reading
from lrp_jax.models import _decoder_files, llama, minilm
from lrp_jax.models._decoder_configs import from_gguf, from_transformers
from lrp_jax.weights import WeightsError, _download, _gguf


class Target(NamedTuple):
    """A reader.

    Attributes:
        seeds: valid contents, and others.
        read: reads a file whose content was damaged.
        errors: the documented errors.
        pack: makes the file from the damaged content, with correct checksums.
    """

    seeds: list[bytes]
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]
    pack: Callable[[bytes], bytes] = bytes


def in_memory(save: Callable[[Path], Any]) -> bytes:
    """What a function writes to a file."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


ARRAYS = {"a/kernel": np.arange(6.0).reshape(2, 3), "a/bias": np.arange(3, dtype=np.float32), "b/kernel": np.eye(4)}


def zipped(name: str, others: dict[str, bytes]) -> Callable[[bytes], bytes]:
    """Packs a content as a member of a valid archive."""

    def pack(content):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for member, data in {**others, name: content}.items():
                archive.writestr(member, data)
        return file.getvalue()

    return pack


def member(content: bytes, name: str) -> tuple[bytes, dict[str, bytes]]:
    """One member of an archive, and the others."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = {n: archive.read(n) for n in archive.namelist()}
    return found.pop(name), found


def hdf5(libver: str, **options: Any) -> bytes:
    def save(path):
        with h5py.File(path, "w", libver=libver, track_order="track" in options) as file:
            file.attrs["model_config"] = '{"data_format": "channels_last"}'
            for i in range(12):
                group = file.create_group(f"layers/l{i}/vars")
                group.create_dataset("0", data=np.arange(64.0).reshape(8, 8), **options.get("dataset", {}))
                group["1"] = np.arange(3, dtype="f4")

    return in_memory(save)


def weight_targets() -> dict[str, Target]:
    torch, old = in_memory(lambda p: write(p, ARRAYS)), in_memory(lambda p: write(p, ARRAYS, old=True))
    state, others = member(torch, "archive/data.pkl")
    foreign = {"a": argparse.Namespace(b={1, 2}), "c": (Path("d"), np.float32(1), collections.Counter("e"), 1j)}
    checkpoint = b"\x80\x02}(K\0" + opcodes(foreign) + opcodes("state_dict") + state[2:-1] + b"u."
    tree = {"params": {"a": {"kernel": ARRAYS["a/kernel"], "bias": ARRAYS["a/bias"]}}}
    gz = {"dataset": {"chunks": (3, 8), "compression": "gzip", "shuffle": True}}
    h5 = [hdf5("earliest"), hdf5("latest"), hdf5("earliest", **gz), hdf5("latest", track=True, **gz)]
    contents = {
        "safetensors": ([in_memory(lambda p: weights.save(p, ARRAYS, {"x": "y"}))], bytes),
        "torch": ([torch], bytes),
        "torch, pickle": ([state, checkpoint, *(pickle.dumps({"a": [1, "b", None, 2.0]}, n) for n in (2, 4))],
                          zipped("archive/data.pkl", others)),
        "torch before 1.6": ([old], bytes),
        "flax": ([flax.serialization.to_bytes(tree)], bytes),
        "keras": (h5, bytes),
        "keras archive": (h5, zipped("model.weights.h5", {"config.json": b"{}"})),
    }  # fmt: skip
    return {name: Target(seeds, weights.load, (WeightsError,), pack) for name, (seeds, pack) in contents.items()}


def png_with_checksums(content: bytes) -> bytes:
    """Corrects the checksum of each chunk, as far as the lengths make sense."""
    found, i = content[:8], 8
    while i + 12 <= len(content):
        length = int.from_bytes(content[i : i + 4], "big")
        body = content[i + 4 : i + 8 + length]
        found, i = found + content[i : i + 4] + body + struct.pack(">I", zlib.crc32(body)), i + 12 + length
    return found


def image_targets() -> dict[str, Target]:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    modes = {"png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], "tiff": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK",
             "YCbCr", "LAB", "I", "F", "I;16"], "gif": ["P"], "webp": ["RGB", "RGBA"], "bmp": ["1", "P", "RGB"],
             "jpeg": ["L", "RGB", "CMYK"], "jpeg2000": ["L", "RGBA"], "avif": ["RGB", "RGBA"], "ppm": ["L", "RGB", "F"],
             "tga": ["P", "RGBA"], "ico": ["RGBA"], "icns": ["RGBA"], "dds": ["RGBA"], "pcx": ["P", "RGB"],
             "sgi": ["RGB"], "qoi": ["RGBA"], "im": ["LA", "F", "YCbCr"], "blp": ["P"], "msp": ["1"], "spider": ["F"],
             "xbm": ["1"]}  # fmt: skip
    targets = {}
    for name, kinds in modes.items():
        seeds = []
        for mode in kinds:
            base = Image.fromarray(pixels, "RGBA")
            image = base.convert("L").convert(mode) if mode in ("I", "F", "I;16") else base.convert("RGB").convert(mode)
            options = {"exif": exif} if name in ("png", "tiff", "jpeg", "webp") else {}
            for extra in [{}, *({"progressive": True},) * (name == "jpeg"), *({"compression": "tiff_lzw"},
                          {"compression": "jpeg"}) * (name == "tiff"), *({"save_all": True, "append_images": [image]},)
                          * (name in ("gif", "png", "webp"))]:  # fmt: skip
                file = io.BytesIO()
                with contextlib.suppress(Exception):  # this Pillow does not write the mode in this format
                    image.save(file, name, **options, **extra)
                    seeds.append(file.getvalue())
        pack = png_with_checksums if name == "png" else bytes
        if seeds:
            targets[name] = Target(seeds, images.read, (images.ImageError,), pack)
    return targets


def idx(part: str, damaged_one: int) -> Target:
    """MNIST with one damaged file."""
    values = np.zeros((3, 28, 28), np.uint8), np.arange(3, dtype=np.uint8)
    raw = [struct.pack(f">HBB{v.ndim}I", 0, 8, v.ndim, *v.shape) + v.tobytes() for v in values]

    def read(path):
        for i, file in enumerate(digits.FILES[part]):
            content = path.read_bytes() if i == damaged_one else gzip.compress(raw[i])
            path.with_name(file.filename).write_bytes(content)
        digits.read(path.parent, part)

    return Target([raw[damaged_one]], read, (WeightsError,), gzip.compress)


def minilm_target(name: str) -> Target | None:
    """A small sentence encoder with one damaged file."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers
    except ImportError:
        return None
    sizes = {
        "vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
        "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", "a", "b", "c", "d"])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    contents = {
        "config.json": str(sizes).replace("'", '"').encode(), "tokenizer.json": tokenizer.to_str().encode(),
        "sentence_bert_config.json": b'{"max_seq_length": 10}',
    }  # fmt: skip

    def read(path):
        for other, content in contents.items():
            path.with_name(other).write_bytes(path.read_bytes() if other == name else content)
        config = minilm._json(path.with_name("config.json"))
        network = minilm.Encoder(**minilm._hyperparameters(config, path))
        minilm.MiniLM(network, {}, path.parent).tokens(["a b c", "d"])

    return Target([contents[name]], read, (WeightsError, minilm.TextError))


def language_targets() -> dict[str, Target]:
    """A small language model as a GGUF file, and the config.json of another."""

    def read_gguf(path):
        with reading(path, "not a readable GGUF file", WeightsError):
            facts = _gguf.metadata(path)
        shapes = {name: tensor.shape for name, tensor in weights.read(path).items()}
        config = from_gguf(facts, shapes, None, path)
        llama.LanguageModel(config, {}, path, (), facts).tokens("a cat")

    def read_config(path):
        from_transformers(_decoder_files.read_json(path), path)

    errors = WeightsError, minilm.TextError
    model = in_memory(language_models.write_gguf)
    empty = in_memory(lambda path: language_models.write_gguf(path, weights=False))
    configs = [json.dumps(language_models.config(name)).encode() for name in ("llama", "gemma3")]
    return {
        "gguf": Target([model, empty], read_gguf, errors),
        "language model config.json": Target(configs, read_config, errors),
    }


def download_target() -> Target:
    content = b"x" * 1000
    answers = [*FAULTS.values(), OK + b"Content-Length: 1000\r\n\r\n" + content,
               OK + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" + content + b"\r\n0\r\n\r\n",
               b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/net\r\nContent-Length: 0\r\n\r\n"]  # fmt: skip
    digest = "sha256:" + hashlib.sha256(content).hexdigest()

    def read(path):
        _download._TIMEOUT, _download._TOTAL, _download._WAIT, _download._ATTEMPTS = 0.5, 2.0, 0.0, 2
        with serving(path.read_bytes()) as port:
            found = weights.download(weights.Remote(f"http://127.0.0.1:{port}/net", digest), path.parent / "cache")
        assert found.read_bytes() == content

    return Target(answers, read, (WeightsError,))


def targets() -> dict[str, Target]:
    """All readers by name."""
    found: dict[str, Target | None] = {
        **weight_targets(),
        **image_targets(),
        **language_targets(),
        "download": download_target(),
    }
    found |= {"idx images": idx("test", 0), "idx labels": idx("train", 1)}
    found["idx, gzip"] = idx("test", 0)._replace(seeds=[gzip.compress(idx("test", 0).seeds[0])], pack=bytes)
    for name in ("config.json", "tokenizer.json", "sentence_bert_config.json"):
        found[f"minilm {name}"] = minilm_target(name)
    return {name: target for name, target in found.items() if target}
