"""Writes under faults: whole or not at all."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bayeslora_cli.errors import StorageError
from bayeslora_cli.runs import atomic_write
from bayeslora_cli.runs.atomic_write import named, replacing, write_json, write_text
from tests.support.trees import put, tree

# ---- atomic writes


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("before", ["nothing", "same"])
def test_success_replaces_all_of_it(tmp_path, kind, before):
    """A directory is not merged with the one it replaces, and nothing else stays behind."""
    put(tmp_path / "thing", kind if before == "same" else "nothing", "old")
    with replacing(tmp_path / "thing") as temporary:
        assert temporary.parent == tmp_path, "a rename is atomic on one file system only"
        assert not temporary.exists()
        put(temporary, kind, "new")
    put(tmp_path / "wanted", kind, "new")
    found = tree(tmp_path)
    assert {n for n in found if "/" not in n} == {"thing", "wanted"}
    for name, content in found.items():
        if name.startswith("wanted"):
            assert found[name.replace("wanted", "thing")] == content
    assert len(found) == 2 * sum(name.startswith("wanted") for name in found)


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("before", ["nothing", "same"])
@pytest.mark.parametrize("written", ["nothing", "something"])
def test_an_exception_leaves_the_old_thing(tmp_path, kind, before, written, error):
    put(tmp_path / "thing", kind if before == "same" else "nothing", "old")
    there = tree(tmp_path)

    def write():
        with replacing(tmp_path / "thing") as temporary:
            put(temporary, kind if written == "something" else "nothing", "new")
            raise error

    with pytest.raises(error):
        write()
    assert tree(tmp_path) == there


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_nothing_is_seen_before_it_is_whole(tmp_path, kind):
    put(tmp_path / "thing", kind, "old")
    put(tmp_path / "copy", kind, "old")
    with replacing(tmp_path / "thing") as temporary:
        put(temporary, kind, "new")
        if kind == "file":
            assert (tmp_path / "thing").read_text() == "old"
        else:
            assert tree(tmp_path / "thing") == tree(tmp_path / "copy")


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_flushed_before_the_name_appears(tmp_path, monkeypatch, kind):
    """After a power cut the new name must not stand for blocks that never reached the disk."""
    events = []
    rename, fsync = Path.rename, os.fsync

    def noted_rename(self, target):
        events.append(("rename", str(target)))
        return rename(self, target)

    def noted_fsync(descriptor):
        events.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    monkeypatch.setattr(Path, "rename", noted_rename)
    monkeypatch.setattr(atomic_write.os, "fsync", noted_fsync)
    with replacing(tmp_path / "thing") as temporary:
        put(temporary, kind, "new")
    at = events.index(("rename", str(tmp_path / "thing")))
    inodes = {p.stat().st_ino for p in (tmp_path / "thing", *(tmp_path / "thing").rglob("*"))}
    assert {inode for _, inode in events[:at]} >= inodes
    assert ("fsync", tmp_path.stat().st_ino) in events[at:], "the directory's entry itself"


def test_parents_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "text"


def test_leftovers_of_this_process_do_no_harm(tmp_path):
    """A killed process's temporary, which nobody cleared away."""
    for kind in ("file", "directory"):
        with replacing(tmp_path / kind) as temporary:
            put(temporary, kind, "x")
        put(temporary, kind, "leftover")
        with replacing(tmp_path / kind) as temporary:
            assert not temporary.exists()
            put(temporary, kind, "new")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "directory"}
    assert (tmp_path / "directory" / "sub" / "new").is_file()


def test_an_old_directory_of_a_killed_process_does_no_harm(tmp_path):
    """Killed between the rename and the removal; the next process has the same number."""
    put(tmp_path / "thing", "directory", "old")
    put(tmp_path / ".thing.old", "directory", "older")
    with replacing(tmp_path / "thing") as temporary:
        put(temporary, "directory", "new")
    assert (tmp_path / "thing" / "sub" / "new").is_file()


def test_a_failed_rename_brings_the_old_directory_back(tmp_path, monkeypatch):
    """Or the checkpoint is gone from where a resume looks for it, and training starts at 0."""
    put(tmp_path / "thing", "directory", "old")
    there = tree(tmp_path)
    rename = Path.rename

    def failing(self, target):
        if self.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space"), replacing(tmp_path / "thing") as temporary:
        put(temporary, "directory", "new")
    assert tree(tmp_path) == there


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_is_strict(tmp_path, value):
    """NaN is no JSON: other readers would refuse the whole file."""
    path = tmp_path / "result.json"
    write_json(path, {"loss": 1.5, "names": ["ä"]})
    there = tree(tmp_path)
    assert json.loads(path.read_bytes()) == {"loss": 1.5, "names": ["ä"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"nested": [{"loss": value}]})
    assert tree(tmp_path) == there


def test_files_are_as_readable_as_any(tmp_path):
    """safetensors makes its own readable by their owner alone."""
    (tmp_path / "any").write_text("")
    with replacing(tmp_path / "directory") as directory:
        directory.mkdir()
        (directory / "secretive").touch(mode=0o600)
    mode = (tmp_path / "directory" / "secretive").stat().st_mode
    assert mode == (tmp_path / "any").stat().st_mode


# ---- what the system refuses


@pytest.mark.parametrize(
    ("kind", "call"),
    [(k, c) for k in ("file", "directory") for c in ("rename", "fsync", "open")]
    + [("directory", "mkdir")],
)
def test_a_refused_write_is_named_and_undone(tmp_path, monkeypatch, kind, call):
    put(tmp_path / "thing", kind, "old")
    there = tree(tmp_path)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write():
        with replacing(tmp_path / "thing") as temporary:
            if kind == "directory":
                temporary.mkdir()
            (temporary if kind == "file" else temporary / "part").write_text("new")

    with monkeypatch.context() as patch:
        patch.setattr(io if call == "open" else os, call, full)
        with pytest.raises(StorageError, match="thing: No space left on device") as caught:
            write()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.exit_code == 1
    assert tree(tmp_path) == there


def test_a_refused_write_of_safetensors_is_named(tmp_path):
    """Which reports the system's error as one of its own; a limit on the file's size is one."""
    program = (
        "import resource, torch\n"
        "from pathlib import Path\n"
        "from safetensors.torch import save_file\n"
        "from bayeslora_cli.errors import StorageError\n"
        "from bayeslora_cli.runs.atomic_write import replacing\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with replacing(Path('x.safetensors')) as temporary:\n"
        "        save_file({'a': torch.zeros(9999)}, temporary)\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.stdout.startswith("cannot write x.safetensors: File too large"), done.stderr
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "text",
    [
        "I/O error: No space left on device (os error 28)",  # safetensors 0.6 and later
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space" })',
    ],
)
def test_a_full_disk_as_safetensors_tells_it(text, tmp_path):
    with pytest.raises(StorageError, match="No space left on device"), named(tmp_path / "x"):
        raise RuntimeError(text)


def test_errors_that_are_not_the_systems_stay_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="not enough"), replacing(tmp_path / "thing"):
        raise ValueError("not enough")
