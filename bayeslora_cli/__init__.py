"""bayeslora: low-rank fine-tuning with ranks allocated by a Bayesian importance score."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayeslora_cli.export.formats.integer_codes import load_quantized as load_quantized

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used: `import bayeslora_cli` imports no torch."""
    if name == "load_quantized":
        from bayeslora_cli.export.formats.integer_codes import load_quantized

        return load_quantized
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
