"""Files from elsewhere: whatever is in them, they are read or refused with a message.

Each reader gets whole files changed at random, and values of any kind where one kind is expected.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bayeslora_cli.bayes import posterior
from bayeslora_cli.bayes.gaussian import FactorisedGaussian
from bayeslora_cli.config.files.presets import read_preset
from bayeslora_cli.config.files.toml_files import from_toml, to_toml
from bayeslora_cli.config.run_config import OPTIONS, RunConfig
from bayeslora_cli.errors import DataError, RunDirError, UserError
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.reports.ranks.history_reading import read_changes
from bayeslora_cli.runs import checkpoint
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.rank_report import RankReport
from bayeslora_cli.tasks.sources.glue import TASKS
from bayeslora_cli.tasks.sources.table_reader import read_table
from bayeslora_cli.tasks.task import Task
from tests.support.objectives import TWO_CLASSES
from tests.support.ranked_runs import allocation, names

FUZZ = settings(
    max_examples=100, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
# what JSON can hold, and what Python's reader takes beyond it
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([10**400, -(10**400), float("nan"), float("inf"), "../../x", "/etc/passwd"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def damaged(draw, data):
    """The bytes of a file, with some of them changed, cut out, doubled or put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                changed[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                del changed[at : at + draw(st.integers(1, 200))]
            case 2:
                changed[at:at] = changed[at : at + draw(st.integers(1, 50))]
            case 3:
                changed[at:at] = draw(
                    st.sampled_from([b"[" * 5000, b'{"a":' * 5000, b"\0", b"9" * 400])
                )
    return bytes(changed)


def replaced(draw, value):
    """A JSON value with one of its parts replaced by anything."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: replaced(draw, value[key])}
    if isinstance(value, list | tuple) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], replaced(draw, value[at]), *value[at + 1 :]]
    return draw(ANYTHING)


def read(call, refusal):
    """What a reader makes of it; None: it refuses it."""
    try:
        return call()
    except refusal:
        return None


REPORT = allocation(names(1))


@FUZZ
@given(data=st.data())
def test_rank_reports(data):
    value = replaced(data.draw, json.loads(json.dumps(REPORT.to_json())))
    assume(isinstance(value, dict))
    found = read(lambda: RankReport.from_json(value, "ranks.json"), RunDirError)
    if found is not None:
        json.dumps(found.to_json(), allow_nan=False)


@FUZZ
@given(data=st.data())
def test_tasks(data):
    value = replaced(data.draw, TASKS["mnli"].to_json())
    assume(isinstance(value, dict))
    found = read(lambda: Task.from_json(value, "task.json"), RunDirError)
    if found is not None:
        assert all(isinstance(name, str) for name in (*found.classes, *found.splits))


@FUZZ
@given(data=st.data())
def test_json_and_lines_of_a_run(data, tmp_path):
    run = RunDir(tmp_path)
    lines = b'{"step": 3, "budget": 20, "ranks": {"a": 1}}\n' * 3
    for path in (run.result, run.ranks_history):
        path.write_bytes(data.draw(damaged(lines)))
    assert isinstance(read(lambda: run.read_json(run.result), RunDirError), dict | None)
    read(lambda: read_changes(run, REPORT), RunDirError)


@FUZZ
@given(data=st.data())
def test_configurations(data, tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(data.draw(damaged(to_toml(RunConfig(text_columns=("a",))).encode())))
    config = read(RunDir(tmp_path).read_config, UserError)
    assert config is None or not config.trust_remote_code
    read(lambda: read_preset(path), UserError)


@FUZZ
@given(name=st.sampled_from(sorted(OPTIONS)), value=ANYTHING)
def test_values_of_options(name, value, tmp_path):
    """One of any type at each key; what is accepted has the option's own."""
    import tomli_w

    try:
        text = tomli_w.dumps({name: value})
    except (TypeError, ValueError, OverflowError):
        assume(False)
    config = read(lambda: from_toml(text, "config.toml"), UserError)
    if config is None:
        return
    found, kind = getattr(config, name), str(OPTIONS[name].type)
    types = {"int": int, "float": float, "str": str, "bool": bool, "tuple[str, ...]": tuple}
    assert isinstance(found, types[kind.removesuffix(" | None")])


TABLES = {
    ".csv": b'text,label\n"a, b",1\nc,0\n',
    ".tsv": b"text\tlabel\na b\t1\nc\t0\n",
    ".jsonl": b'{"text": "a", "label": 1}\n{"text": "c", "label": 0}\n',
}


@FUZZ
@given(suffix=st.sampled_from(sorted(TABLES)), data=st.data())
def test_tables(suffix, data, tmp_path):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(data.draw(damaged(TABLES[suffix])))
    table = read(lambda: read_table(str(path), "--train-file", split="train"), DataError)
    if table is not None:
        assert all(len(table.read_column(name)) == table.rows for name in table.names)


# ---- safetensors


@pytest.fixture(scope="module")
def network(backbone):
    model = backbone("deberta-v2")
    config = RunConfig(task="rte", model=model)
    return build_network(
        config, TWO_CLASSES, load_tokenizer(model), posterior=False,
        device=torch.device("cpu"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(network, tmp_path_factory):
    """A posterior's file."""
    path = tmp_path_factory.mktemp("posterior") / "posterior.safetensors"
    bank = network.bank
    mask = torch.ones_like(bank.mask)
    mask[0, 0] = 0
    posterior.save(
        path,
        network,
        FactorisedGaussian(layout=bank.layout, mean=bank.mean, sigma=bank.mean.abs(), mask=mask),
    )
    return path


@FUZZ
@given(data=st.data())
def test_posteriors_with_other_headers(data, network, whole, tmp_path):
    content = whole.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    head = data.draw(damaged(content[:length]))
    if data.draw(st.booleans()):  # a header of its own length, as the reader wants it
        head = (len(head) - 8).to_bytes(8, "little") + head[8:]
    (tmp_path / "p").write_bytes(head + content[length:])
    found = read(lambda: posterior.load(tmp_path / "p", network), RunDirError)
    assert found is None or found.mean.shape == network.bank.mean.shape


CHANGES = {
    "scalar": lambda tensor: tensor.new_zeros(()),
    "less": lambda tensor: tensor[:1],
    "more": lambda tensor: tensor[None].repeat(9, *[1] * tensor.dim()),
    "whole numbers": lambda tensor: tensor.to(torch.int64) + 7,
    "complex": lambda tensor: tensor.to(torch.complex64),
}


@pytest.mark.parametrize("name", ["kept", "mean/classifier.weight", "drawn/pooler.dense.weight"])
@pytest.mark.parametrize("change", CHANGES)
def test_posteriors_with_other_tensors(name, change, network, whole, tmp_path):
    tensors = load_file(whole)
    tensors[name] = CHANGES[change](tensors[name]).contiguous()
    try:
        save_file(tensors, tmp_path / "p", metadata={"format": FactorisedGaussian.kind})
    except KeyError:
        pytest.skip("this safetensors cannot hold complex numbers")
    with pytest.raises(RunDirError):
        posterior.load(tmp_path / "p", network)


@pytest.mark.parametrize(
    "name", ["drawn/deberta.encoder.layer.0.output.dense.weight", "drawn/../x", "drawn/", "spare"]
)
def test_posteriors_cannot_name_other_tensors(name, network, whole, tmp_path):
    """Least of all frozen ones of the backbone, which `drawn` would otherwise overwrite."""
    tensors = load_file(whole) | {name: torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "p", metadata={"format": FactorisedGaussian.kind})
    with pytest.raises(RunDirError, match="another model"):
        posterior.load(tmp_path / "p", network)


@FUZZ
@given(name=st.sampled_from([checkpoint.TENSORS, checkpoint.SCALARS, checkpoint.COMPLETE]),
       data=st.data())  # fmt: skip
def test_checkpoints(name, data, tmp_path):
    """Whatever is changed is noticed, if it is but a byte."""
    directory = Path(tempfile.mkdtemp(dir=tmp_path)) / "step"
    part = SimpleNamespace(tensors=lambda: {"t": torch.arange(5.0)}, scalars=dict)
    checkpoint.write(directory, {"part": part}, {})
    original = (directory / name).read_bytes()
    changed = data.draw(damaged(original))
    assume(changed != original)
    (directory / name).write_bytes(changed)
    refusals = (OSError, ValueError, RecursionError, checkpoint.SafetensorError)
    found = read(lambda: checkpoint.read(directory, {}), refusals)
    if found is None:
        return
    tensors, scalars, _ = found
    assert name == checkpoint.COMPLETE, "the marker's own spelling alone may change"
    assert torch.equal(tensors["part/t"], torch.arange(5.0))
    assert scalars == {"part": {}}
