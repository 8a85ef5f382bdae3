"""What lies under a path."""

from __future__ import annotations


def tree(path):
    """What lies under a path: relative name -> bytes, None for a directory."""
    return {
        str(p.relative_to(path)): None if p.is_dir() else p.read_bytes() for p in path.rglob("*")
    }


def put(path, kind, content):
    """A file or a directory with something in it."""
    if kind == "file":
        path.write_text(content)
    elif kind == "directory":
        (path / "sub").mkdir(parents=True)
        (path / "sub" / content).write_text(content)
        (path / "top").write_text(content)
