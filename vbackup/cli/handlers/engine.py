"""``vbackup engine``: the configuration of a director, and what it calls."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from vbackup.api import (
    REPOSITORY_MARKER,
    BackupRequest,
    Repository,
    StreamRequest,
    connect,
    create_repository,
    open_stage,
    this_host,
)
from vbackup.cli import director_config, output, pipes
from vbackup.cli.context import Context
from vbackup.cli.director_config import Director, Names
from vbackup.cli.handlers import stream
from vbackup.errors import Status, StreamNotPendingError, UsageError
from vbackup.files import read_regular, storage_errors
from vbackup.model import Level

#: What a director's levels are. Its incremental has a disk in full whose base cannot be trusted: a job that fails every
#: night until somebody asks for a full would be worse.
_LEVELS = {"full": Level.FULL, "incremental": Level.AUTO, "differential": Level.DIFFERENTIAL}
#: The only end of a job that is a backup; "OK -- with warnings" is what Bacula says if the reader has failed.
_OK = "OK"
_MAX_LOG_BYTES = 16 * 1024 * 1024


def run(options: argparse.Namespace, context: Context) -> int:
    """Run the inner command."""
    if context.as_json:
        raise UsageError("What a director reads is no JSON; leave out --json.")
    commands: Mapping[str, Callable[[argparse.Namespace, Context], int]] = {
        "config": _config,
        "read": _read,
        "finish": _finish,
        "write": _write,
    }
    return commands[options.engine_command](options, context)


def _config(options: argparse.Namespace, context: Context) -> int:
    import secrets

    kind = Director(options.director_kind)
    domains = options.domain
    if not domains:
        with context.connect_to_libvirt() as vb:
            chosen = vb.select_all().chosen
        domains = [one.name if director_config.is_plain(one.name) else one.uuid or one.name for one in chosen]
    host_name = this_host().name
    is_bacula = kind is Director.BACULA
    names = Names(
        director=options.director or f"{kind.value}-dir",
        client=options.client or f"{host_name}-fd",
        address=options.address or host_name,
        catalog=options.catalog or "MyCatalog",
        storage=options.storage or ("File1" if is_bacula else "File"),
        pool=options.pool or ("File" if is_bacula else "Full"),
        messages=options.messages or "Standard",
        schedule=options.schedule,
        command=options.program or _this_program(),
        stage=options.stage,
        where=options.where,
    )
    print(director_config.text(kind, domains, names, password=secrets.token_urlsafe(32)), end="")
    return Status.DONE


def _this_program() -> Path:
    found = shutil.which(sys.argv[0]) or shutil.which("vbackup")
    if found is None:
        raise UsageError("Where vbackup is installed is not known; give --program.")
    return Path(found).absolute()


def _read(options: argparse.Namespace, context: Context) -> int:
    level = _level(options.level)
    if options.log is None:
        options.log = _log_path(options, open_stage(options.stage))
    request = StreamRequest(
        BackupRequest(options.domain, level),
        options.job_id,
        falls_back=level is Level.DIFFERENTIAL,
        takes_over=True,
        begun=options.begun,
        since=None if level is Level.FULL else options.since,
    )
    stream.back_up(request, options, context)
    return Status.DONE


def _level(text: str) -> Level:
    try:
        return _LEVELS[text.lower()]
    except KeyError:
        raise UsageError(f"{text!r} is no level of a backup job: it is Full, Incremental or Differential.") from None


def _log_path(options: argparse.Namespace, stage: Repository) -> Path:
    return stage.path / f"{options.domain.replace('/', '_')}-{options.job_id}.log"


def _finish(options: argparse.Namespace, context: Context) -> int:
    _level(options.level)
    stage = Repository.open(options.stage, is_stage=True)
    _print_log(_log_path(options, stage))
    status: int = Status.DONE
    with context.connect_to_libvirt() as vb, context.reporting(is_log=False) as reporter:
        if options.exit == _OK:
            try:
                ended = vb.commit_stream(options.domain, options.job_id, stage=stage, reporter=reporter)
                said = f"Backup {ended.backup_id} was committed: the next one starts from it."
            except StreamNotPendingError as err:
                said, status = f"{err}", err.status
        else:
            status = Status.FAILED
            ended = vb.abort_stream(options.domain, options.job_id, stage=stage, reporter=reporter)
            undone = "nothing of its backup was kept" if ended.backup_id is None else f"{ended.backup_id} was undone"
            said = f"The job ended with {options.exit!r}: {undone}; the next backup starts from the one before."
    print(output.plain(f"vbackup: {said}"))
    return status


def _print_log(path: Path) -> None:
    """Print what the reader said, for the director's log, and remove the file."""
    try:
        text = read_regular(path, max_bytes=_MAX_LOG_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return
    except OSError as err:
        text = f"{path} cannot be read: {err.strerror or err}"
    for line in text.splitlines():
        print(output.plain(line))
    with storage_errors(f"remove {path}"):
        path.unlink(missing_ok=True)


def _write(options: argparse.Namespace, context: Context) -> int:
    where: Path = options.where
    if not where.is_absolute() or where == Path("/"):
        raise UsageError(
            f"A restore needs a directory for itself (Where), not {os.fspath(where)!r}: it never writes over the disks"
            " of a domain."
        )
    path = where / "vbackup"
    log = options.log or where / "vbackup.log"
    with pipes.logged_to(log), pipes.given(context.stop) as read, context.reporting(options.domain) as reporter:
        repository = path if (path / REPOSITORY_MARKER).exists() else create_repository(path)
        with connect(context.uri, repository=repository, stop=context.stop) as vb:
            vb.receive_stream(read, domain=options.domain, reporter=reporter)
    return Status.DONE
