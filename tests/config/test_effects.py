"""Which options decide a run's result."""

from __future__ import annotations

from dataclasses import asdict, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bayeslora_cli.config.effects import affecting, without_effect
from bayeslora_cli.config.run_config import OPTIONS
from bayeslora_cli.errors import ConfigError
from tests.support.strategies import NOT_RESULT, configs


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs(), other=configs(), name=st.sampled_from(sorted(OPTIONS)))
def test_what_has_no_effect_does_not_decide(config, other, name):
    """Another value of one option makes another run if and only if the option has an effect."""
    try:
        changed = replace(config, **{name: getattr(other, name)})
    except ConfigError:
        return
    idle = without_effect(config.method, config.optimizer, asdict(config)).keys()
    alike = getattr(changed, name) == getattr(config, name)
    decides = name not in idle and name not in NOT_RESULT
    assert (affecting(changed) == affecting(config)) == (alike or not decides)
