import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from mounts import mounted
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tiny import tiny_config, tiny_tokenizer
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from seif_jax.errors import UserError
from seif_jax.models.io import hf, safetensors
from seif_jax.models.io.to_device import finite
from seif_jax.tokenizer import Tokenizer
from seif_jax.tokenizer_files import SAVED_FILES

DiskUsage = type(shutil.disk_usage("/"))  # its fields are total, used and free

GENERATION = b'{"eos_token_id":  2}'  # not as this code would write it


class NoFiles:
    def save(self, folder: Path) -> None: ...


def weights(dtype: Any = np.float32):
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    return {"a": values.astype(dtype), "b": values.T.astype(dtype), "c": values[1].astype(dtype)}


def write(dst, tensors, config=None, **options):
    options = {
        "tokenizer": NoFiles(),
        "extra_files": {"generation_config.json": GENERATION},
        **options,
    }
    size = sum(value.nbytes for value in tensors.values())
    hf.write_hf(dst, config or tiny_config(300), tensors.items(), size, **options)
    return dst


def message(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 100])
def test_round_trip(tmp_path, dtype, shard_bytes):
    tensors = weights(dtype)
    source = hf.open_hf(write(tmp_path / "m", tensors, shard_bytes=shard_bytes))
    assert sorted(source.names()) == ["a", "b", "c"]
    for name, value in tensors.items():
        got = source.get(name)
        assert got.dtype == value.dtype
        np.testing.assert_array_equal(got, value)
    assert hf.read_extra_files(tmp_path / "m") == {"generation_config.json": GENERATION}


def test_strided_arrays_are_written_in_order(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {"t": base.T, "step": base[::2, ::3], "scalar": np.float32(3).reshape(())}
    source = hf.open_hf(write(tmp_path / "m", views))
    assert source.get("t").tolist() == [[i, i + 6, i + 12, i + 18] for i in range(6)]
    assert source.get("step").tolist() == [[0, 3], [12, 15]]
    assert source.get("scalar").shape == ()


def test_shards(tmp_path):
    folder = write(tmp_path / "m", weights(), shard_bytes=200)  # 96 + 96 bytes, then 24
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 216}
    assert index["weight_map"] == {"a": names[0], "b": names[0], "c": names[1]}
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*names, "config.json", "generation_config.json", "model.safetensors.index.json"]
    )
    with safe_open(folder / names[0], framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses a file without it


def test_config_is_kept_but_for_the_dtype(tmp_path):
    config = {"z_unknown": [1, None], **tiny_config(300), "torch_dtype": "bfloat16"}
    folder = write(tmp_path / "m", weights(), config)
    written = hf.open_hf(folder).config
    assert written == {**config, "torch_dtype": "float32"}
    assert list(written) == list(config)
    newer = {**tiny_config(300), "dtype": "float32"}
    del newer["torch_dtype"]
    folder = write(tmp_path / "n", weights(ml_dtypes.bfloat16), newer)
    assert hf.open_hf(folder).config == {**newer, "dtype": "bfloat16"}


def test_transformers_reads_the_folder(tmp_path):
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path / "t"))
    folder = write(tmp_path / "m", weights(), tokenizer=tokenizer)
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.vocab_size, str(config.dtype)) == ("llama", 300, "float32")
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 2
    text = "The response should contain 2 words."
    assert AutoTokenizer.from_pretrained(folder).encode(text) == tokenizer.encode(text)


def test_nothing_half_written(tmp_path):
    folder = write(tmp_path / "m", weights())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def breaks():
        yield "a", np.ones(3, np.float32)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        hf.write_hf(folder, {}, breaks(), 12, tokenizer=NoFiles(), extra_files={})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_no_space(tmp_path, monkeypatch):
    """Said before anything is written where the size is known, else where the disk says so."""
    folder = write(tmp_path / "m", weights())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(1000, 785, free=215))
    new = tmp_path / "new"
    assert message(write, new, weights()) == f"{new}: 216 bytes are needed and 215 are free"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(1000, 784, free=216))
    write(new, weights())
    full = SafetensorError("Error while serializing: No space left on device (os error 28)")

    def save(*_, **__):
        raise full

    monkeypatch.setattr(safetensors, "save_file", save)
    assert message(write, folder, weights()) == f"{folder}: No space left on device"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "new"]


def test_a_full_disk(tmp_path, monkeypatch):
    """A real one: the weights do not fit, or what comes after them does not."""
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: DiskUsage(1 << 41, 1 << 40, free=1 << 40)
    )
    big, small = np.ones(20_000, np.float32), np.ones(10, np.float32)
    with mounted(tmp_path / "disk", "64k") as disk:
        for tensors, extra_files in (
            ({"a": big}, {}),
            ({"a": small}, {"README.md": bytes(80_000)}),
        ):
            with pytest.raises(UserError, match=f"{disk}/m: No space left on device"):
                write(disk / "m", tensors, extra_files=extra_files)
            assert not list(disk.iterdir())


def test_what_may_be_replaced(tmp_path):
    folder = write(tmp_path / "m", weights(), shard_bytes=100)
    source = hf.open_hf(folder)
    write(folder, {name: source.get(name) + 1 for name in source.names()})  # onto itself
    assert hf.open_hf(folder).get("c").tolist() == [7, 8, 9, 10, 11, 12]
    assert not list(folder.glob("*.index.json"))
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", weights())


KEPT = ["thesis.txt", "config.json", "model.safetensors/thesis.txt", "notes.json", ".git/HEAD"]


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("kept", KEPT)
def test_what_may_not_be_replaced(tmp_path, kept, beside):
    """A file of the user's own, also beside a model; or a folder with no weights."""
    if beside and kept != "config.json" and not kept.startswith("model"):
        write(tmp_path / "work", weights())
    path = tmp_path / "work" / kept
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("years")
    assert "not a model folder" in message(write, tmp_path / "work", weights())
    assert path.read_text() == "years"


def test_a_link_to_a_folder_is_not_replaced(tmp_path):
    folder = write(tmp_path / "m", weights())
    (tmp_path / "data").mkdir()
    (folder / "link").symlink_to(tmp_path / "data")
    assert "not a model folder" in message(write, folder, weights())


def test_every_file_of_a_tokenizer_may_be_replaced():
    assert {*SAVED_FILES} <= {*hf.REPLACEABLE}


def test_folders_without_config_or_weights(tmp_path):
    assert "neither a model folder nor a GGUF" in message(hf.open_hf, tmp_path / "absent")
    folder = tmp_path / "m"
    folder.mkdir()
    assert f"{folder / 'config.json'}: no such file" in message(hf.open_hf, folder)
    (folder / "config.json").write_text("{} {}")
    assert "config.json: not valid JSON" in message(hf.open_hf, folder)
    (folder / "config.json").write_text("[]")
    assert "config.json: expected a JSON object" in message(hf.open_hf, folder)
    (folder / "config.json").write_text("{}")
    assert message(hf.open_hf, folder).startswith(f"{folder}: no weights")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin is a pickle" in message(hf.open_hf, folder)


def test_broken_weights(tmp_path):
    folder = write(tmp_path / "m", weights(), shard_bytes=100)
    shard = sorted(folder.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    for size in (0, 4, 40, len(whole) - 4):
        shard.write_bytes(whole[:size])
        assert f"{shard}: broken or incomplete" in message(hf.open_hf, folder)
    save_file({"other": np.ones(2)}, shard)
    assert f"{shard}: weight b is missing" in message(hf.open_hf, folder)
    shard.unlink()
    assert f"{shard}: no such file" in message(hf.open_hf, folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "no weight_map" in message(hf.open_hf, folder)


BUFFERS = (
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.11.self_attn.rotary_emb.cos_cached",
    "model.rotary_emb.original_inv_freq",
    "model.causal_mask",
    "transformer.h.3.attn.masked_bias",
    "transformer.h.3.attn.bias",
    "gpt_neox.layers.0.attention.bias",
    "model.embeddings.position_ids",
)


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 100])
def test_derived_buffers_are_no_weights(tmp_path, shard_bytes):
    """Whatever their dtype, in one file or several, in two at once, or in the index alone."""
    dtypes = (np.float32, np.bool_, np.uint8, np.int64)
    masks = {name: np.ones((1, 3), dtypes[i % 4]) for i, name in enumerate(BUFFERS)}
    folder = write(tmp_path / "m", {**weights(), **masks}, shard_bytes=shard_bytes)
    if shard_bytes == 100:
        first, *_, last = sorted(folder.glob("*.safetensors"))
        held = {"a": weights()["a"], BUFFERS[0]: masks[BUFFERS[0]], BUFFERS[-1]: masks[BUFFERS[-1]]}
        save_file(held, first)
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"]["model.layers.9.self_attn.rotary_emb.inv_freq"] = last.name
        path.write_text(json.dumps(index))
    assert sorted(hf.open_hf(folder).names()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "transformer.h.0.attn.c_attn.bias",
        "model.layers.0.mlp.bias",
        "model.layers.0.inv_freq.weight",
        "bias",
        "self_attn_bias",
    ],
)
def test_what_only_looks_like_a_buffer_is_a_weight(tmp_path, name):
    folder = write(tmp_path / "m", {**weights(), name: np.ones(3, np.float32)})
    assert name in hf.open_hf(folder).names()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_byte_order_marks_are_read_over(tmp_path, encoding):
    """As Windows' editors and shells write them; what is written again has none."""
    folder = write(tmp_path / "m", weights(), shard_bytes=100)
    content = {path: path.read_text("utf-8") for path in folder.glob("*.json")}
    for path, text in content.items():
        path.write_text(text, encoding)
    source = hf.open_hf(folder)
    assert (source.config, sorted(source.names())) == (
        {**tiny_config(300), "torch_dtype": "float32"}, ["a", "b", "c"],
    )  # fmt: skip
    assert hf.read_extra_files(folder) == {"generation_config.json": GENERATION}


def test_duplicated_weights(tmp_path):
    folder = write(tmp_path / "m", weights(), shard_bytes=200)
    first, second = sorted(folder.glob("*.safetensors"))
    both = {"a": np.ones((4, 6), np.float32), "c": weights()["c"]}
    save_file(both, second)
    line = message(hf.open_hf, folder)
    assert line == f"{folder}: weight a (4, 6) is in both {first.name} and {second.name}"
    held = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f'{{"a":{held},"a":{held}}}'.encode()
    second.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert f"{second}: broken or incomplete" in message(hf.open_hf, folder)
    assert "a occurs twice" in message(hf.open_hf, folder)


def test_dtypes_that_are_not_read(tmp_path):
    folder = write(tmp_path / "m", {"a": np.ones((2, 3), np.int8)})
    source = hf.open_hf(folder)
    assert (
        message(source.get, "a")
        == "weight a (2, 3) must have one of the dtypes BF16, F16, F32 (got I8)"
    )


def test_weights_at_odd_places(tmp_path):
    """Nothing in the format says that a file's header ends where a number may start."""
    folder = write(tmp_path / "m", {"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    path.write_bytes(
        (size + 1).to_bytes(8, "little") + content[8 : 8 + size] + b" " + content[8 + size :]
    )
    value = hf.open_hf(folder).get("a")
    assert not value.flags.aligned and finite(value)
    assert value[1].tolist() == [3, 4, 5]
