"""Products with frozen weights in each precision: values, gradients, joints, other libraries."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from bayeslora_cli.config.catalogue import BASE_PRECISIONS, implementation
from bayeslora_cli.models.adapters.decoder_blocks import GatedMlp
from bayeslora_cli.models.adapters.layer import join
from bayeslora_cli.models.base_weights.quantized_linear import FrozenLinear, QuantizedLinear
from tests.support.quantized import (
    LAYERS,
    check_spoilt_rows,
    dense_twin,
    gradient_of,
    moved,
    network_of,
    next_token_loss,
    save_llama,
    tokens,
)

pytest.importorskip("bitsandbytes")
ERRORS = {"bf16": 3e-3, "int8": 0.01, "nf4": 0.1, "fp8": 0.04}
"""Relative error of a normally distributed weight."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"))


def form_of(base, height=48, width=32, *, bias=True):
    torch.manual_seed(0)
    layer = nn.Linear(width, height, bias=bias)
    weight = layer.weight.detach().clone()
    made = implementation(BASE_PRECISIONS[base].implementation)
    return made(layer.requires_grad_(False), torch.float32), weight


@pytest.mark.parametrize("base", BASE_PRECISIONS)
@pytest.mark.parametrize("shape", [(48, 32), (16, 80), (128, 16), (64, 64)])
def test_weights_are_held_with_the_error_of_their_type(base, shape):
    """Also where rows are no multiple of a block of 64."""
    form, weight = form_of(base, *shape)
    assert (form.dense() - weight).norm() <= ERRORS[base] * weight.norm()
    assert (form.out_features, form.in_features) == shape == tuple(form.shown_weight().shape)
    held = {name: getattr(form, name) for name in form.names}
    assert {n: (tuple(t.shape), t.dtype) for n, t in held.items()} == form.layout(*shape)


@pytest.mark.parametrize("base", ["bf16", "int8", "nf4"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_the_dense_weight(base, bias):
    form, _ = form_of(base, bias=bias)
    x, down, up = (torch.randn(s, requires_grad=True) for s in ((7, 32), (3, 32), (48, 3)))
    out = form.product(x, down, up)
    found = torch.autograd.grad(out.sin().sum(), (x, down, up))
    right = nn.functional.linear(x, form.dense(), form.bias) + x @ down.t() @ up.t()
    torch.testing.assert_close(out, right, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(right.sin().sum(), (x, down, up))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", BASE_PRECISIONS)
def test_rows_that_are_none_or_not_finite(base):
    check_spoilt_rows(form_of(base)[0])


def test_fp8_quantizes_rows_and_gradients_by_row():
    """Against a twin in float64 that rounds at the same places."""

    def rounded(x):
        scale = (x.abs().amax(1, keepdim=True) / 448).float().double()
        return (x / scale).float().to(torch.float8_e4m3fn).double() * scale

    form, weight = form_of("fp8", bias=False)
    x, grad = torch.randn(7, 32, requires_grad=True), torch.randn(7, 48)
    scales = torch.logspace(-3, 3, 48)
    form.replace_dense(weight * scales[:, None])
    out = form(x)
    dense = form.dense().double()
    torch.testing.assert_close(out.double(), rounded(x.detach().double()) @ dense.t(),
                               rtol=1e-5, atol=1e-4)  # fmt: skip
    (found,) = torch.autograd.grad(out, x, grad)
    # the weight's scales lie along the sum, and multiply the gradient before it is rounded
    scale, codes = form.scale.double(), form.codes.double()
    right = rounded(grad.double() * scale) @ codes
    torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-3)
    exact = grad.double() @ dense
    assert (found.double() - exact).norm() <= 0.05 * exact.norm()


@pytest.mark.parametrize("base", BASE_PRECISIONS)
def test_layers_on_one_input_are_computed_together(base, llama):
    network = moved(network_of(llama, base))
    block = network.module.model.layers[0].self_attn
    layers = [block.q_proj, block.k_proj, block.v_proj]
    assert all(layer.shared is not None for layer in layers)
    x = torch.randn(5, 64)
    together = layers[0].shared.joint(x)
    for layer, found in zip(layers, together, strict=True):
        alone = layer.base_layer.product(x, layer.lora_A * layer.scale, layer.lora_B)
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)
    assert join(layers).base_layer.dense().shape[0] == sum(layer.out_features for layer in layers)


@pytest.mark.parametrize("base", BASE_PRECISIONS)
def test_the_gated_mlp_is_one_operator(base, llama):
    """It keeps its input and [g, u], and gives what its three layers give one by one."""
    mlp = moved(network_of(llama, base)).module.model.layers[0].mlp
    assert isinstance(mlp, GatedMlp)
    x, slope = torch.randn(2, 5, 64), torch.randn(2, 5, 64)

    def outcome(module):
        rows, kept = x.clone().requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            out = module(rows)
        sizes = [t.numel() for t in kept if t.shape[:1] == (10,)]
        return out, torch.autograd.grad(out, rows, slope)[0], sizes

    (out, grad, sizes), (right, wanted, _) = (outcome(m) for m in (mlp, mlp._replaced[0]))
    assert sorted(sizes)[-2:] == [10 * 64, 10 * 256]
    bound = 1e-5 if base != "fp8" else 1e-2  # a number that rounds otherwise
    for found, other in ((out, right), (grad, wanted)):
        assert (found - other).norm() <= bound * other.norm() > 0


def bits(base):
    return BitsAndBytesConfig(
        load_in_4bit=base == "nf4", load_in_8bit=base == "int8", bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32,
        llm_int8_threshold=1e9,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("base", "loss_bound", "bound"), [("nf4", 1e-5, 1e-4), ("int8", 1e-2, 0.1)]
)
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_a_step_is_pefts_on_bitsandbytes_weights(base, loss_bound, bound, llama):
    """Loss and gradients of LoRA in fp32; bitsandbytes' int8 layers round the activations too."""
    network = moved(network_of(llama, base))
    theirs = AutoModelForCausalLM.from_pretrained(llama, quantization_config=bits(base))
    config = LoraConfig(r=4, lora_alpha=32.0, target_modules=LAYERS, task_type="CAUSAL_LM")
    peft = get_peft_model(theirs, config).train()
    leaves = []
    for name, (a, _, b) in factors_of(network).items():
        layer = peft.base_model.model.get_submodule(name)
        for own, value in ((layer.lora_A, a), (layer.lora_B, b)):
            own["default"].weight.data.copy_(value)
            leaves.append(own["default"].weight)
    batch = tokens()
    network.module.train()
    loss, gradient = gradient_of(network, batch)
    other = next_token_loss(peft(**batch).logits, batch["input_ids"])
    found = torch.autograd.grad(other, leaves)
    wanted = [v for a, _, b in factors_of(network, gradient).values() for v in (a, b)]
    assert abs(float(loss - other.detach())) <= loss_bound
    for one, two in zip(found, wanted, strict=True):
        assert (one - two).norm() <= bound * two.norm() > 0


def factors_of(network, flat=None):
    """A, E, B of each layer, from a flat tensor (N,) of the bank."""
    flat = network.bank.mean if flat is None else flat
    bank, found = network.bank, {}
    for group in bank.groups:
        a, b = group.view_a(flat), group.view_b(flat)
        for place, index in enumerate(group.members):
            found[list(network.adapters)[index]] = (a[place], None, b[place])
    return found


@pytest.mark.parametrize("base", BASE_PRECISIONS)
def test_gradients_still_pass_after_an_evaluation(base, llama):
    """bitsandbytes' own 4-bit layers stop them on CPUs with avx512_bf16, with a warning only."""
    network = moved(network_of(llama, base))
    batch = tokens()
    _, before = gradient_of(network, batch)
    stored = [t.clone() for t in stored_of(network)]
    network.module.eval()
    with torch.inference_mode():
        network.model_logits(batch)
    network.module.train()
    _, after = gradient_of(network, batch)
    assert torch.equal(before, after)
    assert float(before.norm()) > 0
    # and nothing was merged into the weights
    assert all(torch.equal(a, b) for a, b in zip(stored, stored_of(network), strict=True))


def stored_of(network):
    forms = [m for m in network.module.modules() if isinstance(m, QuantizedLinear)]
    return [tensor for form in forms for tensor in form.stored()]


@pytest.mark.parametrize("base", ["bf16", "int8", "nf4"])
@pytest.mark.parametrize("method", ["lora", "adalora", "blora"])
def test_a_step_is_that_of_dense_weights_of_the_same_values(base, method, llama):
    rank = {} if method != "lora" else {"init_rank": 4}
    options = {"method": method, "criterion": "sensitivity" if method == "adalora" else None,
               **rank}  # fmt: skip
    network = moved(network_of(llama, base, **options))
    twin = dense_twin(llama, network, **options)
    batch = tokens()
    (loss, gradient), (other, wanted) = gradient_of(network, batch), gradient_of(twin, batch)
    assert float(loss) == pytest.approx(float(other), abs=1e-5)
    assert (gradient - wanted).norm() <= 1e-4 * wanted.norm() > 0


@pytest.mark.parametrize("base", BASE_PRECISIONS)
def test_layers_without_adapters_are_quantized_too(base, llama):
    network = network_of(llama, base, target_modules=("q_proj", "v_proj"))
    frozen = [n for n, m in network.module.named_modules() if isinstance(m, FrozenLinear)]
    assert len(frozen) == 2 * 5
    assert type(network.module.lm_head) is nn.Linear
    assert not hasattr(network.module.config, "quantization_config")
    assert network.module.model.layers[0].mlp.up_proj.weight.isnan().all()
