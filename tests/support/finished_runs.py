"""Finished runs that a test changes on purpose."""

from __future__ import annotations

import json

from bayeslora_cli.runs.directory import RunDir


def reseal(path):
    """Write the checksums of a finished run's files anew, as if it had written what is there."""
    run = RunDir(path)
    result = json.loads(run.result.read_bytes())
    run.checksums.unlink(missing_ok=True)
    run.finish(result)


def make_old(path):
    """Make a finished run one of a version that wrote no checksums."""
    run = RunDir(path)
    run.checksums.unlink()
    environment = json.loads(run.environment.read_bytes())
    environment.pop("checksums")
    environment.pop("identity", None)
    run.environment.write_text(json.dumps(environment))
