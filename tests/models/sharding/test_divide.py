"""What a process holds of a backbone whose weights are divided; the other processes are a fake."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from bayeslora_cli.methods.building import build_network
from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.models.sharding.divide import blocks_of, stored_names
from bayeslora_cli.models.sharding.stored_weights import StoredWeights
from tests.support.decoders import CAUSAL, save_decoder
from tests.support.networks import LABELS, build, config_for

CPU = torch.device("cpu")
WORLD = 3


@pytest.fixture(scope="module")
def models(backbone, tmp_path_factory):
    """Saved before there are processes: later transformers would leave it to the first one."""
    directory = tmp_path_factory.mktemp("qwen2")
    return {
        "qwen2": save_decoder(directory, "qwen2"),
        **{kind: backbone(kind) for kind in ("llama", "gpt2", "bert")},
    }


@pytest.fixture(params=(0, WORLD - 1))
def mesh(request, models):
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=WORLD)
    yield DeviceMesh.from_group(dist.group.WORLD, "cpu")
    dist.destroy_process_group()


def divided(model, mesh, labels, **changes):
    config = config_for(model, **changes)
    return build_network(
        config, labels, load_tokenizer(model), posterior=False, device=CPU, mesh=mesh
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "bert"])
def test_a_process_holds_its_rows(kind, mesh, models):
    """Joined projections and their biases too; and the whole of what is no block's."""
    labels = LABELS if kind == "bert" else CAUSAL
    model = models[kind]
    network, whole = divided(model, mesh, labels), build(model, labels)[0]
    assert network.divided
    assert network.backbone_sha256 == whole.backbone_sha256
    names, expected = stored_names(network.module), dict(whole.module.named_parameters())
    expected = {name.replace(".base_layer.", "."): tensor for name, tensor in expected.items()}
    in_blocks = {id(p) for block in blocks_of(network.module) for p in block.parameters()}
    rank, some = mesh.get_local_rank(), 0
    for name, parameter in network.module.named_parameters():
        stored = [n.replace(".base_layer.", ".") for n in names[name]]
        rows = torch.cat([expected[n] for n in stored])
        is_divided = id(parameter) in in_blocks and not parameter.requires_grad
        assert isinstance(parameter, DTensor) == is_divided, name
        found = parameter
        if is_divided:
            some += 1
            found, share = parameter.to_local(), -(-len(rows) // WORLD)
            rows = rows[rank * share : (rank + 1) * share]
        assert torch.equal(found, rows), name
    assert some
    assert len(network.joints) == len(whole.joints)
    held = sum(p.to_local().numel() for p in network.module.parameters() if isinstance(p, DTensor))
    full = sum(p.numel() for p in network.module.parameters() if isinstance(p, DTensor))
    assert held <= 1.2 * full / WORLD


@pytest.mark.parametrize("base", ["int8", "nf4", "fp8"])
def test_a_process_holds_its_rows_of_codes(base, mesh, models):
    """Joint products hold no second copy of them."""
    if base != "fp8":
        pytest.importorskip("bitsandbytes")
    network = divided(models["llama"], mesh, CAUSAL, base_precision=base)
    assert network.joints
    for form in (m for m in network.module.modules() if isinstance(m, AdaptedLinear)):
        for tensor in form.stored():
            assert isinstance(tensor, DTensor) == bool(tensor.dim())
    own = {id(p) for p in network.module.parameters()}
    for joint in network.joints:
        assert all(id(tensor) in own for tensor in joint.base_layer.stored())


def test_rows_of_tensors_that_lie_one_below_the_other(tmp_path):
    tensors = {name: torch.randn(n, 2) for name, n in (("a", 3), ("b", 1), ("c", 4))}
    save_file(tensors, tmp_path / "x.safetensors")
    weights = StoredWeights([tmp_path / "x.safetensors"])
    whole = torch.cat(list(tensors.values()))
    for start in range(9):
        for stop in range(start, 9):
            found = weights.rows("abc", start, stop, like=torch.empty(0))
            assert torch.equal(found, whole[start:stop])
    assert weights.shape("c") == (4, 2)
    assert weights.shape("d") is None
