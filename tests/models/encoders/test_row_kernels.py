"""Whole encoders on packed rows by our attention kernels, against padded rows, in fp32.

`TRITON_INTERPRET=1 pytest tests/models/encoders/test_row_kernels.py` runs the kernels on a CPU.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch

from bayeslora_cli.data.packing import collate
from bayeslora_cli.models.backbones.packing import prepare_for_packing
from bayeslora_cli.models.encoders.logits import logits
from bayeslora_cli.models.kernels.row_attention import row_attention as operator
from tests.models.encoders.test_logits import (
    VARIANTS,
    build,
    gradients,
    inputs,
    rows_of_text,
    takes_types,
)
from tests.models.kernels.row_attention.test_row_attention import H200

OWN = {"share_att_key": False}


def check(name, device, **changes):
    model = build(name, **changes).to(device).train()
    ours = copy.deepcopy(model)
    prepare_for_packing(ours, head=True)
    rows = rows_of_text(types=takes_types(model))
    everyone = torch.arange(len(rows))
    padded, packed = rows.batch(everyone), collate(rows, everyone, 0, fixed=True)
    want, got = (
        logits(module, {n: x.to(device) for n, x in inputs(batch).items()})
        for module, batch in ((model, padded), (ours, packed))
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    expected = gradients(model, want)
    for parameter, gradient in gradients(ours, got).items():
        torch.testing.assert_close(
            gradient, expected[parameter], rtol=1e-3, atol=1e-4, msg=parameter
        )


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of places that nothing is read from
@pytest.mark.parametrize(
    ("name", "changes"),
    [("bert", {}), ("modernbert", {}), ("deberta-v2", {}), ("deberta-v2", OWN)],
    ids=["bert", "modernbert", "deberta", "deberta with own projections"],
)
def test_packed_rows_are_padded_rows_interpreted(name, changes, monkeypatch):
    taken = []
    monkeypatch.setattr(operator, "has_kernel", lambda *_: True)
    monkeypatch.setattr(operator, "gpu_of", lambda _: H200)
    monkeypatch.setattr(operator.tiles, "PROGRAMS", 1)  # interpreted programs are slow
    attend = operator._attend
    monkeypatch.setattr(operator, "_attend", lambda *a: taken.append(a) or attend(*a))
    check(name, "cpu", **changes)
    assert len(taken) == 2, "a call per layer"


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize(
    "name", sorted({"bert", "roberta", "electra", "distilbert"} | VARIANTS.keys())
)
def test_packed_rows_are_padded_rows(name):
    check(name, "cuda")
