"""Files that could run code when they are read: pickles, scripts, code in a model's folder."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from seif_jax import data_files
from seif_jax.errors import UserError
from seif_jax.models.io import hf
from seif_jax.tokenizer import Tokenizer

AUTO_MAP = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModel": "evil.EvilModel",
    "AutoModelForCausalLM": "evil.EvilModel",
    "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
}


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def ran(tmp_path):
    """A path that hostile code creates. The test fails if it exists in the end."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


def tar(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        file.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def object_array(path: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil(path)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_the_pickle_would_run(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "joblib", "pt", "npy", "npz"])
def test_a_data_file_is_not_a_pickle(suffix, tmp_path, ran):
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(pickle.dumps(Evil(ran)))
    with pytest.raises(UserError, match="a data file must be one of: .parquet, .jsonl"):
        data_files.read(str(path))


@pytest.mark.parametrize("name", ["a.pkl", "a.pth", "a.npy", "a.npz"])
def test_a_data_sets_folder_with_pickles(name, tmp_path, ran):
    folder = tmp_path / "set"
    folder.mkdir()
    content = object_array(ran) if name == "a.npy" else pickle.dumps(Evil(ran))
    (folder / "train.tar").write_bytes(tar(name, content))
    try:
        rows = data_files.read(str(folder))
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert rows[0][1]["pkl"] == content  # bytes, as they are


def test_a_data_sets_script_is_not_run(tmp_path, ran):
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "script.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    with pytest.raises(UserError, match="scripts are no longer supported"):
        data_files.read(str(folder))


@pytest.mark.parametrize("with_weights", [True, False])
def test_weights_are_not_a_pickle(with_weights, tmp_path, ran):
    folder = tiny_run.model_folder(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(ran)))
    if with_weights:
        hf.open_hf(folder)
        return
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pytorch_model.bin is a pickle, which can run code"):
        hf.open_hf(folder)


@pytest.mark.parametrize("tokenizer_file", [True, False])
def test_code_in_a_models_folder_is_not_run(tokenizer_file, tmp_path, ran, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *args: "y")  # if a library asks
    folder = tiny_run.model_folder(tmp_path / "model")
    (folder / "evil.py").write_text(
        f"import os\nos.mkdir({str(ran)!r})\n"
        "class EvilConfig: pass\nclass EvilModel: pass\nclass EvilTokenizer: pass\n"
    )
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text()) | {"auto_map": AUTO_MAP}
        values |= {"tokenizer_class": "EvilTokenizer"} if "tokenizer" in name else {}
        (folder / name).write_text(json.dumps(values))
    if not tokenizer_file:
        vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
        (folder / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
        (folder / "merges.txt").write_text("")
        (folder / "tokenizer.json").unlink()
        with pytest.raises(UserError, match="the tokenizer cannot be read"):
            Tokenizer.load(folder)
        return
    hf.open_hf(folder)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    tokenizer.save(tmp_path / "copy")
    Tokenizer.load(tmp_path / "copy")


def test_no_module_reads_pickles_from_files():
    """`pickle` is used for objects that processes of one run send each other, in memory."""
    package = Path(hf.__file__).parents[2]
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(package).as_posix()
        assert "pickle.load(" not in text and "allow_pickle=True" not in text, name
        assert "trust_remote_code=True" not in text, name
        assert "pickle.loads" not in text or name == "processes.py", name
