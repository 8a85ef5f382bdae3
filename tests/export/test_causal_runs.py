"""A run of a language model in a GGUF file, from outside: exports, cards, resume, identity."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from contextlib import chdir
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import bayeslora_cli as bl
from bayeslora_cli.errors import ModelError, RunDirError
from tests.support import chat_runs
from tests.support.chat_runs import chat_run
from tests.support.gguf_models import CHAT_TEMPLATE, write_gguf


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return chat_run(tmp_path_factory.mktemp("chats"))


@pytest.mark.parametrize("format", ["adalora", "lora", "merged"])
def test_the_code_of_an_exports_card_answers_as_the_run(format, run, capsys):
    path = run.export(format).path
    card = (path / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert code.count("…") == 1
    code = code.replace("…", "say the").replace("max_new_tokens=100", "max_new_tokens=8")
    capsys.readouterr()
    with chdir(path), warnings.catch_warnings():
        # PEFT 0.21 warns of the keys that its own AdaLoRA writes, in anybody's code
        warnings.simplefilter("ignore")
        exec(code, {})
    assert capsys.readouterr().out == run.generate(["say the"], max_new_tokens=8)[0].texts[0] + "\n"
    assert AutoTokenizer.from_pretrained(path).chat_template == CHAT_TEMPLATE


def test_llama_cpp_is_told_the_very_file(run):
    """The adapter belongs to the file that the run was trained on; vLLM has no use for it."""
    found = run.export("gguf")
    served = f"llama-server --lora adapter.gguf --model {run.config.model}"
    assert found.manifest["serving"] == [served]
    assert found.manifest["check"]["max_difference"] > 0
    card = (found.path / "README.md").read_text()
    assert f"Served from this directory by\n\n```sh\n{served}\n```" in card
    assert "library_name: gguf" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert f'Llama("{run.config.model}", lora_path=f"{{directory}}/adapter.gguf")' in code
    compile(code, "README.md", "exec")


def test_llama_cpp_converts_an_adapter_of_peft_for_the_file(run):
    """Its converter, tried by hand, makes the matrices of --format gguf, except from patterns."""
    convert = "python convert_lora_to_gguf.py . --base backbone --outfile adapter.gguf"
    serve = f"llama-server --lora adapter.gguf --model {run.config.model}"
    found = run.export("lora", overwrite=True)
    assert found.manifest["serving"] == [convert, serve]
    assert f"```sh\n{convert}\n{serve}\n```" in (found.path / "README.md").read_text()
    assert (found.path / "backbone" / "config.json").is_file()
    patterned = run.export("lora", patterns=True, overwrite=True)
    assert "serving" not in patterned.manifest


def test_its_own_card_opens_the_adapter_on_the_file(run):
    """With the tokenizer of the training, which transformers does not make of every GGUF file."""
    card = (run.path / "README.md").read_text()
    assert 'gguf_file="tiny.gguf"' in card
    assert "AutoTokenizer.from_pretrained(directory)" in card
    own, trained = AutoTokenizer.from_pretrained(run.directory.adapter), run.load().tokenizer
    for text in ("say the 12 of 2024", "\n 7  8"):
        assert own(text)["input_ids"] == trained(text)["input_ids"]
    assert own.chat_template == trained.chat_template
    assert (
        json.loads((own_file := run.directory.adapter / "tokenizer.json").read_text())["truncation"]
        is None
    ), own_file
    assert "model.generate(" in card
    assert "adapter/: " not in card, "PEFT opens it with the run's predictions"


def test_the_same_command_finds_the_finished_run(tmp_path, monkeypatch):
    run = chat_run(tmp_path)
    written = run.directory.result.stat().st_mtime_ns
    assert chat_run(tmp_path).path == run.path  # the file is written anew, with the same bytes
    assert run.directory.result.stat().st_mtime_ns == written
    monkeypatch.setattr(chat_runs, "write_gguf", lambda path, **options: write_gguf(
        path, **options, seed=1
    ))  # fmt: skip
    with pytest.raises(RunDirError, match="its weights are others now"):
        chat_run(tmp_path)


def test_the_file_may_move_but_not_change(run, tmp_path):
    original = Path(run.config.model)
    copy = shutil.copy(original, tmp_path / "renamed.gguf")
    moved = bl.Run(run.path, model=str(copy), verify=True, device="cpu")
    assert moved.generate(["say a"], max_new_tokens=4) == run.generate(["say a"], max_new_tokens=4)
    write_gguf(tmp_path / "other.gguf", tied=False, spread=0.5, seed=1)
    with pytest.raises(ModelError, match="its weights are others now"):
        bl.Run(run.path, model=str(tmp_path / "other.gguf"), device="cpu").load()
