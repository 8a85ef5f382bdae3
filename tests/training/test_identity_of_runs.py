"""What a run rests on: with other weights, another configuration or other rows it is refused."""

from __future__ import annotations

import json
import shutil

import pytest

from bayeslora_cli.errors import ModelError, RunDirError
from bayeslora_cli.evaluation.run_evaluation import evaluate_run
from tests.training.test_loop import killed_at, run_of  # noqa: F401


@pytest.fixture
def places(backbone, rte, tmp_path):
    """A model and data that a test may change."""
    for name, source in (("data", rte), ("model", backbone("bert"))):
        shutil.copytree(source, tmp_path / name)
    return {"data": str(tmp_path / "data"), "model": str(tmp_path / "model")}


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_finished_run(backbone, rte, places, tmp_path):
    def train(**changes):
        return run_of(backbone, rte, tmp_path / "runs", max_steps=2, **places | changes)

    run = train()
    assert train().path == run.path
    # moved: the same model at another place
    (tmp_path / "elsewhere").mkdir()
    shutil.move(places["model"], tmp_path / "elsewhere" / "model")
    moved = str(tmp_path / "elsewhere" / "model")
    with pytest.raises(ModelError, match="no such directory"):
        evaluate_run(run.path, device="cpu")
    here = evaluate_run(run.path, device="cpu", model=moved)
    assert train(model=moved).path == run.path
    # edited
    config = tmp_path / "elsewhere" / "model" / "config.json"
    whole = config.read_text()
    edit(config, hidden_act="relu")
    with pytest.raises(ModelError, match="hidden_act gelu then, relu now"):
        evaluate_run(run.path, device="cpu", model=moved)
    shutil.move(tmp_path / "elsewhere" / "model", places["model"])
    with pytest.raises(RunDirError, match=r"is already trained, but .* hidden_act gelu then, relu"):
        train()
    (tmp_path / "model" / "config.json").write_text(whole)
    assert evaluate_run(run.path, device="cpu").facts["metrics"] == here.facts["metrics"]
    table = tmp_path / "data" / "RTE" / "train.tsv"
    table.write_text(table.read_text().replace("w1 ", "w2 ", 1))
    with pytest.raises(RunDirError, match="is already trained, but the rows or labels of its data"):
        train()


def test_an_unfinished_run(backbone, rte, places, tmp_path, killed_at):  # noqa: F811
    with killed_at(9):
        run_of(backbone, rte, tmp_path / "runs", checkpoint_every="4", **places)
    config = tmp_path / "model" / "config.json"
    whole = config.read_text()
    edit(config, layer_norm_eps=1e-3)
    with pytest.raises(RunDirError, match=r"layer_norm_eps 1e-12 then, 0\.001 now"):
        run_of(backbone, rte, tmp_path / "runs", **places)
    config.write_text(whole)
    edit(tmp_path / "model" / "tokenizer_config.json", padding_side="left")
    with pytest.raises(RunDirError, match="the backbone's weights have changed since"):
        run_of(backbone, rte, tmp_path / "runs", **places)
