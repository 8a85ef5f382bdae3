"""Compiles a backbone's repeated blocks by torch.compile: once for all blocks of a kind."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_cli.config.effects import kind
from bayeslora_cli.config.run_config import OPTIONS, RunConfig
from bayeslora_cli.runs.file_lock import once

logger = logging.getLogger("bayeslora")

WORTH_IT = 20_000
"""Least number of steps for compiling on a GPU. It takes five to ten seconds per padded width and
saves a fifth of a step (DeBERTaV3-base, bf16, H200): 1.5 of 7.1 ms at 64 tokens, 5.7 of 29 at
256."""
WORTH_IT_PACKED = 1_500
"""The same for packed rows: compiling takes half a minute, for all their sizes together, and saves
15 to 39 ms of a step (SmolLM2-135M, Llama-3.2-1B and Qwen2.5-7B, 4,096 to 8,192 tokens, H200)."""
WORTH_IT_PACKED_ENCODER = 150_000
"""The same for packed rows of an encoder, whose own kernels leave the compiler a quarter of a
millisecond per step (DeBERTaV3-base, bf16, 32 rows of 64 tokens, H200)."""
PATIENCE = 30.0
"""Seconds to wait while another process compiles, which takes five to twenty per width."""
READY = 30.0
"""Seconds to wait for the processes that compile kernels."""
# options that decide a block's code, apart from its adapters
_BLOCK = tuple(name for name, option in OPTIONS.items() if option.decides_code)
VARIANTS = 128
"""Most widths, row counts and phases that a block is compiled for; others run uncompiled."""


def is_worth_compiling(
    choice: str, steps: int, *, packed: bool = False, head: bool = False
) -> bool:
    """Return whether to compile a run of `steps` steps on a GPU.

    Warns if compiling would pay but Triton is missing.

    Args:
        choice: auto, on or off.
        packed: whether rows are packed.
        head: whether the backbone has a head, as encoders do.
    """
    least = WORTH_IT
    if packed:
        least = WORTH_IT_PACKED_ENCODER if head else WORTH_IT_PACKED
    if choice == "off" or (choice == "auto" and steps < least):
        return False
    if not find_spec("triton"):
        logger.warning(
            "steps are not compiled, and slower: compiling needs Triton (pip install triton)"
        )
        return False
    return True


def start_compilers() -> None:
    """Start the processes that compile kernels, so that they are ready when the network is.

    Until they are, which takes them some ten seconds, torch compiles one kernel after the other.
    """
    from torch._inductor.async_compile import AsyncCompile  # this import takes seconds

    AsyncCompile.warm_pool()
    AsyncCompile.use_process_pool()  # type: ignore[no-untyped-call]  # gives them their first work


def await_compilers() -> None:
    """Wait until the processes of `start_compilers`, if it was called, are ready."""
    found = sys.modules.get("torch._inductor.async_compile")
    ready = None if found is None else getattr(found.AsyncCompile, "_ready_future", None)
    if ready is not None:
        with suppress(Exception):  # then kernels are compiled without them
            ready.result(timeout=READY)


def compile_blocks(module: nn.Module, *, dynamic: bool | None = False) -> None:
    """Compile the blocks of each list of layers of one class, in place; their names stay.

    Blocks are compiled rather than the whole model, so that all share the code compiled for the
    first. That code computes the gradient of a block's input. The first block's input needs none,
    but gets one as well: compiling separate code for the first block would take half of the time
    that compiling takes.

    Args:
        dynamic: whether sizes are symbols in the code; None: those are that have changed. Packed
            rows have as many sizes as there are sums of lengths, and compiling takes seconds. Their
            code then also computes the norms' results a second time, in place of keeping them.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 16 * VARIANTS)
    # an operator that is not looked into, such as an adapted layer's, keeps its input; a norm's
    # result is 2 of the 16 to 20 such sizes that a decoder's block keeps, and cheap to compute
    functorch: Any = torch._functorch.config
    if hasattr(functorch, "ban_recompute_materialized_backward"):
        functorch.ban_recompute_materialized_backward = dynamic is not None
    recomputes = _allow_compiled_recomputation(module)
    for owner in list(module.modules()):
        for blocks in owner.children():
            if isinstance(blocks, nn.ModuleList) and len({type(block) for block in blocks}) == 1:
                for block in blocks:
                    block.compile(dynamic=dynamic)
                    if recomputes:
                        _compile_recomputation(block, dynamic)
                owner.register_forward_pre_hook(_with_gradient, with_kwargs=True)


def _allow_compiled_recomputation(module: nn.Module) -> bool:
    """Return whether blocks may be compiled with their recomputation; if so, set torch to do it.

    Torch before 2.10 compiles no block with a `SharedCall`. With dropout the second pass has to
    draw the first one's numbers, from a state that is set outside of what is compiled.
    """
    # torch warns all who recompute selectively of operators in place, of which a block has none
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_not_about_contexts)
    config: Any = torch._dynamo.config
    if not hasattr(config, "skip_fwd_side_effects_in_bwd_under_checkpoint"):
        return False
    allowed = not _has_dropout(module)
    # right for a `SharedCall`, which keeps nothing from one pass to the other
    config.skip_fwd_side_effects_in_bwd_under_checkpoint = allowed
    return allowed


def _is_not_about_contexts(record: logging.LogRecord) -> bool:
    return "context_fn is passed" not in record.getMessage()


def _compile_recomputation(block: nn.Module, dynamic: bool | None) -> None:
    """Compile a block that is recomputed with its recomputation, where that is around its call.

    The compiler then leaves out of the second forward pass what no gradient needs. Newer releases
    of transformers recompute inside of `forward`, which is compiled already.
    """
    checkpoint = getattr(block, "_gradient_checkpointing_func", None)
    if type(block).__call__ is nn.Module.__call__ or checkpoint is None:
        return
    call = torch.compile(_recomputed, dynamic=dynamic)

    def through(run: partial[Any], *args: Any) -> Any:
        return call(block, checkpoint, args, run.keywords)

    block._gradient_checkpointing_func = through  # type: ignore[assignment]


def _has_dropout(module: nn.Module) -> bool:
    shares = [m.p for m in module.modules() if isinstance(m, nn.Dropout)]
    shares += [getattr(m, "attention_dropout", 0.0) for m in module.modules()]
    return any(isinstance(share, float) and share > 0 for share in shares)


def _recomputed(
    block: nn.Module, checkpoint: Callable[..., Any], args: Any, keywords: dict[str, Any]
) -> Any:
    return checkpoint(partial(block._call_impl, **keywords), *args)


def _with_gradient(
    owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Have the hidden states, an encoder's first or named argument, require a gradient."""
    states = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(states, Tensor) or states.requires_grad or not torch.is_grad_enabled():
        return args, kwargs
    if not states.is_floating_point():
        return args, kwargs
    states = states.detach().requires_grad_()
    return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})


@contextmanager
def compiled_once(
    config: RunConfig, adapters: tuple[Hashable, ...], key: tuple[Hashable, Hashable]
) -> Iterator[None]:
    """Let only one of several processes compile, inside this block, what all of them need.

    The others wait, and find the result in the compiler's cache on disk. There are two locks: one
    for runs whose blocks are alike, on inputs of the same shapes, since blocks are most of the
    work; then one for runs that differ only in the seed.

    Args:
        config: the run's configuration.
        adapters: `Method.block_key`, which decides the code of the adapted layers.
        key: the key of the piece that is compiled, and its inputs' shapes.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # this import takes a second

    machine = torch.__version__, torch.cuda.get_device_name()
    place = Path(cache_dir()) / "bayeslora"
    wanted = [place / _name(machine, kind(config), key)]
    if key[1]:  # a forward and backward pass, with blocks in it
        block = adapters, *(getattr(config, name) for name in _BLOCK)
        wanted.insert(0, place / _name(machine, block, key[1]))
    with ExitStack() as held:
        for made in wanted:
            if held.enter_context(once(made, "compile the same", PATIENCE)):
                await_compilers()
                break
        yield
        with suppress(OSError):
            for made in wanted:
                made.touch()


def _name(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run the blocks uncompiled inside: for a few passes compiling does not pay."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
