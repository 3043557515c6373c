"""Folders in object stores, against servers of their APIs on this machine."""

import json
import os
import subprocess
import sys

import pytest
import stores

from seif_jax import files, object_store, storage
from seif_jax.errors import UserError, one_line


@pytest.fixture(scope="module", params=stores.KINDS)
def store(request):
    with stores.server(request.param) as variables:
        yield request.param, variables


@pytest.fixture
def url(store, request, tmp_path):
    """A folder of the test's own in the store."""
    kind, variables = store
    with stores.machine(variables, tmp_path / "cache"):
        yield f"{kind}://bucket/{request.node.originalname}"


@pytest.fixture
def elsewhere(store, tmp_path):
    """What another machine sees in a folder: {name: text}."""

    def read(url):
        with stores.machine(store[1], tmp_path / "elsewhere"):
            root = storage.local(url)
            return {
                path.relative_to(root).as_posix(): path.read_text()
                for path in root.rglob("*")
                if path.is_file()
            }

    return read


def location(url: str) -> object_store.Location:
    parsed = storage.parse(url)
    assert parsed
    return parsed


def test_every_change_is_in_the_store_at_once(url, elsewhere):
    folder = files.output_folder(url)
    assert not folder.exists()
    files.write_text(folder / "a.json", "1")
    assert elsewhere(url) == {"a.json": "1"}
    files.write_text(folder / "b c" / "ü+?#%.txt", "two\n")
    files.write_text(folder / "a.json", "3")
    assert elsewhere(url) == {"a.json": "3", "b c/ü+?#%.txt": "two\n"}
    files.remove(folder / "a.json")
    files.move(folder / "b c", folder / "d")
    assert elsewhere(url) == {"d/ü+?#%.txt": "two\n"}
    files.remove(folder / "d")
    assert elsewhere(url) == {}


def test_only_changed_files_are_uploaded(url, elsewhere, monkeypatch):
    folder = files.output_folder(url)
    folder.mkdir(parents=True)
    logs, uploaded = [folder / name for name in "abc"], []
    upload_files = storage.upload_files

    def counted(files):
        uploaded.append({path.name for path, _ in files})
        upload_files(files)

    monkeypatch.setattr(storage, "upload_files", counted)
    for text, changed in [("1", "abc"), ("2", "b"), ("", ""), ("3", "ca")]:
        for log in logs:
            if log.name in changed:
                with log.open("a") as file:
                    file.write(text)
        storage.upload_changed(logs)
    assert uploaded == [{*"abc"}, {"b"}, {*"ca"}]
    assert elsewhere(url) == {"a": "13", "b": "12", "c": "13"}


def test_a_folder_is_replaced_as_a_whole(url, elsewhere, monkeypatch):
    folder = files.output_folder(url)

    def write(**texts):
        with files.atomic_path(folder / "model") as temporary:
            temporary.mkdir()
            for name, text in texts.items():
                files.write_text(temporary / "sub" / name, text)  # not uploaded from there

    write(a="1", b="2", c="3")
    assert elsewhere(url) == {"model/sub/a": "1", "model/sub/b": "2", "model/sub/c": "3"}
    write(a="1", d="4")
    assert elsewhere(url) == {"model/sub/a": "1", "model/sub/d": "4"}
    # Killed after its first request.
    monkeypatch.setattr(storage, "upload_files", lambda files: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(e="5")
    assert elsewhere(url) == {}


def test_an_interrupted_deletion_leaves_no_part(url, elsewhere, monkeypatch):
    folder = files.output_folder(url)
    with files.atomic_path(folder / "1") as temporary:
        files.write_text(temporary / "a", "1")
        files.write_text(temporary / "b", "2")
    delete = storage.delete_files
    monkeypatch.setattr(storage, "delete_files", lambda locations: (delete(locations[:1]), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        files.remove(folder / "1")
    monkeypatch.undo()


def test_what_a_killed_upload_left_is_removed(url, store, tmp_path):
    with stores.machine(store[1], tmp_path / "first"):
        folder = files.output_folder(url)
        files.write_text(folder / "kept", "1")
        files.write_text(folder / "2" / "part", "1")
        object_store.mark_incomplete(location(f"{url}/2"))
    with stores.machine(store[1], tmp_path / "second"):
        folder = files.output_folder(url)
        assert sorted(path.name for path in folder.iterdir()) == ["kept"]
        assert object_store.list_files(location(url)).keys() == {"kept"}


def test_a_restart_has_what_the_store_has(url, store, tmp_path):
    """Also on the same machine: what was not uploaded, or is gone from the store, is not there."""
    cache = tmp_path / "machine"
    with stores.machine(store[1], cache):
        folder = files.output_folder(url)
        for name in "abc":
            files.write_text(folder / "x" / name, name)
        (folder / "x" / "a").write_text("A")  # same size, not uploaded
        (folder / "x" / "new").write_text("new")
        untouched = (folder / "x" / "c").stat().st_ino
    with stores.machine(store[1], tmp_path / "other"):
        files.remove(files.output_folder(url) / "x" / "b")
    with stores.machine(store[1], cache):
        folder = files.output_folder(url)
        texts = {path.name: path.read_text() for path in (folder / "x").iterdir()}
        assert texts == {"a": "a", "c": "c"}
        assert (folder / "x" / "c").stat().st_ino == untouched  # not downloaded again


def test_only_new_folders_are_uploaded(url, elsewhere):
    """As checkpoints: the old one goes after the new one is complete."""
    folder = files.output_folder(url)
    for step in ("1", "2", "2.tmp"):
        (folder / step).mkdir(parents=True)
        (folder / step / "x").write_text(step)
    storage.upload_new(folder, ["1"])
    storage.upload_new(folder, ["1", "2"])
    assert elsewhere(url) == {"1/x": "1", "2/x": "2"}
    storage.upload_new(folder, ["2"])
    assert elsewhere(url) == {"2/x": "2"}


def test_only_the_first_process_writes(url, elsewhere, store, tmp_path):
    first = files.output_folder(url)
    files.write_text(first / "a", "1")
    copies, storage._copies[:] = storage._copies[:], []  # another process
    assert storage.join_folder(url, storage.token(url)) == first
    files.write_text(first / "b", "2")
    assert elsewhere(url) == {"a": "1"}
    opened, storage._copies[:] = storage.token(url), copies
    with stores.machine(store[1], tmp_path / "other"):
        with pytest.raises(UserError, match=f"{url}: all processes must share the disk"):
            storage.join_folder(url, opened)


def test_files_and_folders_are_read(url, store, tmp_path):
    with stores.machine(store[1], tmp_path / "writer"):
        folder = files.output_folder(url)
        files.write_text(folder / "data" / "seeds.jsonl", "one\n")
        files.write_text(folder / "weights" / "big", "x")
    assert storage.local(f"{url}/data/seeds.jsonl").read_text() == "one\n"
    assert storage.local(f"{url}/data/none.jsonl").exists() is False
    root = storage.local(url, lambda name: not name.startswith("weights/"))
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["seeds.jsonl"]
    with stores.machine(store[1], tmp_path / "writer"):
        files.write_text(files.output_folder(url) / "data" / "seeds.jsonl", "two\n")
    assert storage.local(f"{url}/data/seeds.jsonl").read_text() == "two\n"
    # A path object has only one slash.
    assert storage.local(storage.Path(url) / "data" / "seeds.jsonl").read_text() == "two\n"


def test_messages_name_the_url(url):
    folder = files.output_folder(url)
    files.write_text(folder / "config.json", "1")
    with pytest.raises(UserError) as raised:
        files.write_text(folder / "config.json" / "x", "1")
    assert one_line(raised.value).startswith(f"{url}/config.json")
    path = storage.local(f"{url}/nothing/here.jsonl")
    assert one_line(UserError(f"{path}: no such file")) == f"{url}/nothing/here.jsonl: no such file"


def test_errors_of_one_line(url, monkeypatch):
    kind = url.partition(":")[0]
    with pytest.raises(UserError, match=f"{kind}://absent: no such bucket"):
        storage.local(f"{kind}://absent/run")
    with pytest.raises(UserError, match=f"{kind}://absent"):
        files.write_text(files.output_folder(f"{kind}://absent/run") / "x", "1")
    with pytest.raises(UserError, match="must not contain"):
        storage.local(f"{kind}://bucket/../x")
    for wrong in ("https://bucket/x", "gs:/", "gs://", "file:///x", "s4://a/b"):
        if "://" in wrong:
            with pytest.raises(UserError, match="a URL must be gs://BUCKET/NAME or s3://"):
                files.output_folder(wrong)


@pytest.mark.parametrize(
    "error, kind, message",
    [
        (
            OSError("When listing 'x': AWS Error ACCESS_DENIED during ListObjectsV2 operation"),
            UserError,
            "s3://b/x: access denied; set AWS_ACCESS_KEY_ID",
        ),
        (
            OSError("Status(UNAVAILABLE: Could not create a OAuth2 access token\nto authenticate"),
            UserError,
            "access denied",
        ),
        (OSError("AWS Error NETWORK_CONNECTION\n503 Slow Down"), ConnectionError, "503 Slow Down"),
        (FileNotFoundError(2, "gone"), UserError, "s3://b/x: no such bucket, file or folder"),
        (OSError(28, "No space left on device", "/tmp/x"), OSError, "/tmp/x: No space left"),
        (ConnectionResetError("reset"), ConnectionError, "reset"),
    ],
)
def test_what_a_store_answers(error, kind, message):
    with pytest.raises(kind) as raised:
        with object_store.store_errors(object_store.Location("s3", "b/x")):
            raise error
    line = one_line(raised.value)
    assert message in line and "\n" not in line
    assert isinstance(raised.value, UserError) == (kind is UserError)


def test_a_folder_is_written_by_one_process_of_a_machine(url):
    files.output_folder(url)
    code = f"from seif_jax import files; files.output_folder({url!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert f"{url} is in use by another process" in other.stderr


def test_local_paths_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(object_store, "_file_system", None)  # no store is asked
    assert storage.local("~/x") == tmp_path / "x"
    assert files.output_folder(str(tmp_path)) == tmp_path
    files.write_json(tmp_path / "a" / "b.json", {"c": 1})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"c": 1}
    files.remove(tmp_path / "a")
