"""What `import bayeslora_cli` offers: model cards name it, and last longer than folders."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bayeslora_cli
from bayeslora_cli.export.formats import integer_codes


def test_load_quantized_has_a_path_that_stays():
    assert bayeslora_cli.load_quantized is integer_codes.load_quantized


def test_the_path_that_earlier_cards_name():
    from bayeslora_cli.quantized_file import load_quantized

    assert load_quantized is integer_codes.load_quantized


def test_other_names_are_missing():
    with pytest.raises(AttributeError, match="no attribute 'load_nothing'"):
        _ = bayeslora_cli.load_nothing


def test_the_package_imports_no_torch():
    program = "import bayeslora_cli, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]
