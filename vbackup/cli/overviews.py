"""Find out for a command whether everything is backed up, as its options ask."""

from __future__ import annotations

import argparse
import os

from vbackup import api
from vbackup.cli.collector import without_cycles
from vbackup.cli.context import Context
from vbackup.errors import NoConfigError, UsageError


def found(options: argparse.Namespace, context: Context) -> api.Overview:
    """Return the state of what is configured, or of the repository that was given with -r.

    Raises ConfigError, UsageError.
    """
    request = api.StatusRequest(tuple(options.jobs), options.max_age, is_offline=options.offline)
    with without_cycles():
        return _found(options, context, request)


def _found(options: argparse.Namespace, context: Context, request: api.StatusRequest) -> api.Overview:
    config = options.config
    is_by_environment = options.repository == os.environ.get("VBACKUP_REPOSITORY")
    if config is None and context.has_repository and not is_by_environment:
        return _of_repository(context, request)
    try:
        return api.status(request, config=config)
    except NoConfigError:
        if not context.has_repository:
            raise
        return _of_repository(context, request)


def _of_repository(context: Context, request: api.StatusRequest) -> api.Overview:
    if request.jobs:
        raise UsageError("Jobs are of the configuration: give no -r, or no job.")
    return api.status(request, repository=context.repository_path(), uris=context.uris)
