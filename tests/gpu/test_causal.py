"""Causal language models on a CUDA device: `pytest -m gpu tests/gpu/test_causal.py`."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.data.batching import Feed, TrainOrder, largest_batch
from bayeslora_cli.execution.compilation import compile_blocks
from bayeslora_cli.execution.cuda_graphs import GraphRunner
from bayeslora_cli.models.backbones.packing import BY_OFFSETS, BY_POSITIONS, prepare_for_packing
from bayeslora_cli.models.decoders.packed_attention import packed_attention
from bayeslora_cli.models.decoders.scores import log_likelihoods
from bayeslora_cli.training.loop import train
from bayeslora_cli.training.step import TrainStep
from tests.gpu.test_step import strict  # noqa: F401
from tests.models.backbones.test_packing import build, gradients, separate
from tests.support.decoders import CAUSAL, save_decoder, token_rows, write_prompts
from tests.support.evaluation import evaluated
from tests.support.faults import contents, differences
from tests.training.test_step import T_FINAL, T_INIT, TOTAL, make_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("a_gpu"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method"),
]
GPU = torch.device("cuda")
LENGTHS = tuple(3 + (7 * i) % 13 for i in range(40))
METHODS = [
    ("adalora", "ivon", "snr"), ("adalora", "adamw", "sensitivity"), ("lora", "adamw", None),
    ("full", "adamw", None), ("blora", "adamw", None), ("blora", "ivon", None),
]  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("llama") / "tiny-llama", "llama")


@pytest.fixture
def side_stream():
    with torch.cuda.stream(torch.cuda.Stream()):
        yield


def on_gpu(rows, indices=None):
    indices = torch.arange(len(rows)) if indices is None else indices
    return Feed(rows, GPU).batch(indices)


# ---- attention


def row_by_row(q, k, v, offsets, window):
    """In float64: (1, h, t, d) -> (1, t, h, d)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    found = torch.zeros_like(q)
    for start, stop in pairwise(offsets.tolist()):
        place = torch.arange(stop - start, device=q.device)
        seen = place[:, None] >= place
        if window is not None:
            seen &= place[:, None] - place < window
        inside = [x[:, :, start:stop] for x in (q, k, v)]
        found[:, :, start:stop] = F.scaled_dot_product_attention(*inside, seen, scale=0.2)
    return found.transpose(1, 2)


@pytest.mark.parametrize("window", [None, 5, 1000])
@pytest.mark.parametrize("shared", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
def test_attention_within_rows(window, shared, dtype, bound):
    """With an empty row at the end, as fills a batch; values and gradients."""
    generator = torch.Generator("cuda").manual_seed(0)
    offsets = torch.tensor([0, 70, 75, 76, 192, 192], dtype=torch.int32, device="cuda")
    exact = [
        torch.randn(1, heads, 192, 64, device="cuda", generator=generator, dtype=torch.float64)
        for heads in (6, 6 // shared, 6 // shared)
    ]
    halved = [x.to(dtype).requires_grad_() for x in exact]
    exact = [x.detach().double().requires_grad_() for x in halved]
    longest = torch.empty(0, 128, device="cuda")
    got = packed_attention(*halved, offsets, longest, scaling=0.2, window=window)
    want = row_by_row(*exact, offsets, window)
    assert got.shape == (1, 192, 6, 64)
    weights = torch.randn(want.shape, device="cuda", generator=generator, dtype=torch.float64)
    (got.double() * weights).sum().backward()
    (want * weights).sum().backward()
    torch.testing.assert_close(got.double(), want, rtol=bound, atol=bound)
    for ours, theirs in zip(halved, exact, strict=True):
        scale = theirs.grad.abs().max()
        torch.testing.assert_close(
            ours.grad.double() / scale, theirs.grad / scale, rtol=bound, atol=bound
        )


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method")  # in torch's own imports
@pytest.mark.parametrize("shared", [1, 3])
def test_attention_within_rows_of_one_length(shared):
    """By another kernel, on rows of 64 tokens; a compiled call gives the same."""
    generator = torch.Generator("cuda").manual_seed(0)
    offsets = 64 * torch.arange(4, dtype=torch.int32, device="cuda")
    exact = [
        torch.randn(1, heads, 192, 64, device="cuda", generator=generator, dtype=torch.float64)
        for heads in (6, 6 // shared, 6 // shared)
    ]
    halved = [x.bfloat16().requires_grad_() for x in exact]
    exact = [x.detach().double().requires_grad_() for x in halved]
    want = row_by_row(*exact, offsets, None)
    weights = torch.randn(want.shape, device="cuda", generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad((want * weights).sum(), exact)
    for call in (packed_attention, torch.compile(packed_attention, fullgraph=True)):
        got = call(*halved, offsets, torch.zeros(1, 64, device="cuda"), scaling=0.2)
        torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=2e-2)
        found = torch.autograd.grad((got.double() * weights).sum(), halved)
        for ours, theirs in zip(found, expected, strict=True):
            scale = theirs.abs().max()
            torch.testing.assert_close(ours.double() / scale, theirs / scale, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", sorted(BY_OFFSETS | BY_POSITIONS))
def test_packed_rows_are_separate_rows(kind, dtype):
    model, rows = build(kind).to(GPU, dtype).eval(), token_rows()
    batch = on_gpu(rows)
    count = int(batch.pop("count"))
    twin = rows.__class__(
        **{name: getattr(rows, name) for name in rows.__dataclass_fields__}
        | {"tokens": rows.tokens.cuda(), "offsets": rows.offsets, "counted": rows.counted.cuda()}
    )
    want = separate(model, twin)
    expected = gradients(model, want)
    prepare_for_packing(model)
    got = log_likelihoods(model, batch)
    assert (got[count:] == 0).all()
    bound = 2e-5 if dtype is torch.float32 else 1.0  # rows that see each other are off by more
    torch.testing.assert_close(got[:count], want, rtol=bound, atol=bound)
    found = gradients(model, got[:count])
    if dtype is torch.float32:
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=5e-5, atol=5e-5, msg=name)
        return
    ours, theirs = (torch.cat([g.double().flatten() for g in x.values()]) for x in
                    (found, {name: expected[name] for name in found}))  # fmt: skip
    assert torch.cosine_similarity(ours, theirs, 0) > 0.97


# ---- the step


def trained(llama, method, optimizer, criterion, precision, runner=None, compiled=False, **changes):
    options = {} if runner is None else {"runner": runner}
    step = make_step(
        llama, optimizer, criterion, method=method, labels=CAUSAL, device="cuda",
        precision=precision, **options, **changes,
    )  # fmt: skip
    if compiled:
        compile_blocks(step.network.module)
        step.compile()
    rows = token_rows(LENGTHS)
    feed, order = Feed(rows, GPU), TrainOrder(len(rows), 8, seed=1)
    for t in range(TOTAL):
        step(t, [feed.batch(part) for part in order.indices(t).tensor_split(2)])
    return step


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "optimizer", "criterion"), METHODS)
def test_a_captured_step_is_the_eager_one(
    method, optimizer, criterion, precision, llama, side_stream
):
    torch.use_deterministic_algorithms(True)
    try:
        eager = trained(llama, method, optimizer, criterion, precision)
        captured = trained(
            llama, method, optimizer, criterion, precision, lambda noise: GraphRunner([noise])
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert captured.runner.failure is None
    assert len(captured.runner._graphs) > 1
    bank, other = eager.network.bank, captured.network.bank
    for name, value in bank.tensors().items():
        assert torch.equal(value, other.tensors()[name]), name
    assert eager.means().loss == captured.means().loss


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "optimizer", "criterion"), METHODS)
def test_the_step_never_waits(
    method,
    optimizer,
    criterion,
    precision,
    llama,
    strict,  # noqa: F811
):
    step = make_step(
        llama, optimizer, criterion, method=method, labels=CAUSAL, device="cuda",
        precision=precision,
    )  # fmt: skip
    feed = Feed(token_rows(LENGTHS), GPU)
    step(0, [feed.batch(torch.arange(8))])
    torch.cuda.set_sync_debug_mode("error")
    for t in (T_INIT + 2, TOTAL - T_FINAL, TOTAL - 1):
        step(t, [feed.batch(torch.arange(8) + t % 8)])
    torch.cuda.set_sync_debug_mode("default")
    assert step.bad_step() is None


@pytest.mark.filterwarnings("default")  # the compiler's own, which differ from release to release
@pytest.mark.parametrize(("method", "criterion"), [("adalora", "magnitude"), ("blora", None)])
def test_a_compiled_step_is_captured(method, criterion, llama, side_stream):
    eager = trained(llama, method, "adamw", criterion, "bf16")
    compiled = trained(
        llama, method, "adamw", criterion, "bf16", lambda noise: GraphRunner([noise]),
        compiled=True,
    )  # fmt: skip
    assert compiled.runner.failure is None
    assert compiled.means().loss == pytest.approx(eager.means().loss, rel=1e-2)


@pytest.mark.parametrize("checkpointing", ["off", "blocks", "selective"])
def test_fp32_follows_the_cpu(checkpointing, llama):
    found = []
    for device in ("cpu", "cuda"):
        step = make_step(
            llama, "adamw", "magnitude", labels=CAUSAL, device=device,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        feed = Feed(token_rows(LENGTHS), torch.device(device))
        for t in range(3):
            step(t, [feed.batch(torch.arange(8))])
        found.append((step.means().loss, step.network.bank.mean.cpu()))
    (loss, mean), (other_loss, other_mean) = found
    assert other_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(other_mean, mean, rtol=1e-3, atol=1e-5)


# ---- whole runs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prompts")
    return {
        "train_file": write_prompts(directory / "train.jsonl", 64),
        "eval_file": write_prompts(directory / "dev.jsonl", 20, seed=1),
    }


@pytest.fixture
def options(llama, files):
    def make(output, **changes):
        return resolve(
            {
                **files, "model": llama, "output": str(output), "max_steps": 24, "batch_size": 8,
                "grad_accum": 2, "log_every": 3, "device": "cuda", "eval_every": 100, "lr": 0.01,
            } | changes
        )  # fmt: skip

    return make


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["adalora", "full", "blora"])
def test_a_run_and_its_evaluation(method, precision, options, tmp_path):
    run = train(options(tmp_path, method=method, precision=precision))
    expected = run.read_json(run.result)["best_at_budget"]["metrics"]["validation"]["nll"]
    for device, bound in (("cuda", 1e-2), ("cpu", 2e-2)):
        found = evaluated(run.path, device=device)["metrics"]["validation"]["nll"]
        assert found == pytest.approx(expected, abs=1e-4 if precision == "fp32" else bound)


def test_a_deterministic_run_resumes_to_the_bit(options, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(self, step, micro_batches):
        if step == 13:
            raise Killed
        original(self, step, micro_batches)

    changes = {"precision": "bf16", "deterministic": True, "checkpoint_every": "5"}
    whole = train(options(tmp_path / "whole", **changes))
    original = TrainStep.__call__
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", killed)
        with pytest.raises(Killed):
            train(options(tmp_path / "parts", **changes))
    resumed = train(options(tmp_path / "parts", **changes))
    assert differences(resumed.path, contents(whole.path)) == []


@pytest.mark.parametrize("rows", [(40, 56), (64, 64)])
def test_bytes_of_a_packed_batch(rows, llama):
    """The estimate's activations against the allocator."""
    from bayeslora_cli.training.memory.estimate import estimate
    from tests.training.memory.test_estimate import META, config_for, requested
    from tests.training.memory.test_estimate import build as build_of

    config = config_for(llama, precision="bf16", criterion="sensitivity")
    split = token_rows(rows)
    found = estimate(
        build_of(config, META, CAUSAL), config, batch=largest_batch(split, 2, GPU), device=GPU
    )
    network = build_of(config, GPU, CAUSAL)
    network.module.train()
    batch = on_gpu(split)
    batch.pop("count")
    network.objective.loss(network.logits(batch), batch)  # the kernels' workspaces
    before = requested()
    loss = network.objective.loss(network.logits(batch), batch)
    assert found.activations == pytest.approx(requested() - before, rel=0.1)
    assert loss.requires_grad
