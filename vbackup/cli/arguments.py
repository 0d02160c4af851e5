"""Arguments that several commands share, and the domains they name."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vbackup.errors import UsageError

if TYPE_CHECKING:
    from vbackup.api import Wanted


def add_subcommands(parser: argparse.ArgumentParser, dest: str) -> Any:
    """Add the place for the commands within a command, and return it; ``dest``: the option with the chosen one."""
    return parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest=dest, parser_class=type(parser)
    )


def add_common(
    parser: argparse.ArgumentParser,
    *,
    at_top: bool = False,
    asks_libvirt: bool = True,
    of_hosts: bool = False,
    reads_config: bool = False,
) -> None:
    """Add the options of every command, which may stand before or after its name.

    ``at_top``: before it, where they get their defaults. Without ``asks_libvirt`` the help does not offer -c, which is
    accepted and ignored: a script can give all commands the same options. ``of_hosts``: -c may be given several times.
    ``reads_config``: the help offers --config, which all others accept and ignore.
    """

    def default(value: Any) -> Any:
        return value if at_top else argparse.SUPPRESS

    parser.add_argument(
        "-c",
        "--connect",
        metavar="URI",
        action="append",
        default=default(None),
        help="libvirt connection URI (default: LIBVIRT_DEFAULT_URI, or what libvirt finds)"
        + ("; several times for several hosts" if of_hosts else "")
        if asks_libvirt
        else argparse.SUPPRESS,
    )
    parser.set_defaults(connects=_Connects(asks_libvirt, of_hosts))
    verbosity = parser.add_mutually_exclusive_group()
    verbosity.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        default=default(False),
        help="print nothing on success, only warnings and errors",
    )
    verbosity.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=default(False),
        help="log all QMP commands and replies on stderr",
    )
    parser.add_argument(
        "-r",
        "--repository",
        metavar="DIR",
        default=default(os.environ.get("VBACKUP_REPOSITORY")),
        help="repository directory (default: VBACKUP_REPOSITORY)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=default(os.environ.get("VBACKUP_CONFIG") or None),
        help="configuration file, in place of all others (default: VBACKUP_CONFIG, or those of this user)"
        if reads_config or at_top
        else argparse.SUPPRESS,
    )
    parser.add_argument(
        "--json", action="store_true", default=default(False), help="print the result as one JSON document"
    )
    parser.add_argument(
        "--progress",
        choices=("auto", "json", "none"),
        default=default("auto"),
        help="auto (default): bars on a terminal, log lines elsewhere; json: one JSON event per line on stderr;"
        " none: no progress output",
    )


class _Connects(NamedTuple):
    """What a command does with -c."""

    asks_libvirt: bool
    of_hosts: bool


def uris_of(options: argparse.Namespace) -> list[str]:
    """Return the URIs that were given with -c, each once; those after the command take the place of those before it.

    Raises UsageError for several URIs if the command works on one host.
    """
    uris = list(dict.fromkeys(options.connect or ()))
    connects: _Connects = options.connects
    if not connects.asks_libvirt:
        return uris[-1:]
    if len(uris) > 1 and not connects.of_hosts:
        raise UsageError(
            f"-c is given for {len(uris)} hosts ({', '.join(uris)}), and 'vbackup {options.command}' works on one: give"
            " one. Only 'vbackup backup' works on several."
        )
    if len(uris) > 1 and "" in uris:
        raise UsageError("One of the URIs given with -c is empty.")
    return uris


def add_domain(parser: argparse.ArgumentParser, *, otherwise: str = "") -> None:
    """Add the domain, positional or as --domain as in virsh; ``otherwise``: what the help says of leaving it out."""
    add_positional(
        parser, "domain", "DOMAIN", f"name or UUID of the domain{otherwise}", shown_as_required=not otherwise
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)


class ShownAsRequired(argparse.Action):
    """Stores an argument that vbackup.cli.parser.Formatter shows as required."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Store the value."""
        setattr(namespace, self.dest, values)


def add_positional(
    parser: argparse.ArgumentParser, name: str, metavar: str, purpose: str, *, shown_as_required: bool
) -> None:
    """Add an argument that argparse takes for optional, as an option can be given in its place."""
    action = ShownAsRequired if shown_as_required else "store"
    parser.add_argument(name, metavar=metavar, nargs="?", help=purpose, action=action)


def add_backup(parser: argparse.ArgumentParser, which: Any, purpose: str) -> None:
    """Add the backup, positional or as --backup, the latter to the group ``which``."""
    add_positional(parser, "backup_id", "ID", "the same as --backup ID", shown_as_required=False)
    which.add_argument("--backup", metavar="ID", help=purpose)


def backup_of(options: argparse.Namespace) -> str | None:
    """Return the id of the backup that add_backup's arguments name, or None; clear what --domain has shifted.

    Raises UsageError.
    """
    named: str | None = options.backup
    is_alone = options.domain is not None and options.backup_id is None
    if is_alone and named is None and options.domain_option not in (None, options.domain):
        # The domain is in --domain, and the only positional argument is the id.
        options.backup_id, options.domain = options.domain, None
    positional: str | None = options.backup_id
    if named is not None and positional is not None and named != positional:
        raise UsageError(f"Two backups given: {positional} and {named}.")
    return positional if named is None else named


class _Devs(argparse.Action):
    """Collects names of disks: words, and lists such as vda,vdb. ``greedy`` has the words if they may be others."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        devs = [dev for word in values for dev in word.split(",")]
        if "" in devs:
            parser.error(f"argument {option}: {' '.join(values)!r} has an empty name of a disk")
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *devs])
        if len(values) > 1:
            hint = (
                f": {option} takes all words that follow it, so {', '.join(values)} are taken as disks. Give the domain"
                f" before {option}, or write '--' after the last disk"
            )
            namespace.greedy = hint
            parser.set_defaults(greedy=hint)  # for what argparse itself finds missing


def add_domains(parser: argparse.ArgumentParser) -> None:
    """Add one or more domains, listed or all (vbackup.domain.selection)."""
    parser.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="names or UUIDs of domains, or patterns such as 'web*'"
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help="back up all domains that can be backed up")
    parser.add_argument(
        "--exclude",
        metavar="PATTERN",
        nargs="+",
        action="extend",
        default=[],
        help="with --all or patterns: skip these domains",
    )


def add_disks(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add --disk; ``purpose``: its help."""
    add_devs(parser, "--disk", purpose)


def add_devs(parser: argparse.ArgumentParser, option: str, purpose: str, *, metavar: str = "DEV") -> None:
    """Add an option that takes names of disks: vda vdb, or vda,vdb."""
    parser.add_argument(option, metavar=metavar, nargs="+", action=_Devs, default=[], help=purpose)


def add_quiesce(parser: argparse.ArgumentParser) -> None:
    """Add how the guest's filesystems are frozen at the moment."""
    from vbackup.api import DEFAULT_FREEZE_LIMIT_S
    from vbackup.cli.values import freeze_limit_s  # which 'vbackup --help' does without
    from vbackup.model import Quiesce

    parser.add_argument(
        "--quiesce",
        choices=[quiesce.value for quiesce in Quiesce],
        default=Quiesce.AUTO.value,
        help="freeze the guest's filesystems; auto (default): if its agent answers; required: fail if it does not;"
        " no: never",
    )
    parser.add_argument(
        "--freeze-limit",
        metavar="TIME",
        type=freeze_limit_s,
        default=DEFAULT_FREEZE_LIMIT_S,
        help=f"thaw the filesystems after this time (20, 20s, 1m) in any case (default: {DEFAULT_FREEZE_LIMIT_S}s)",
    )


def add_wait_lock(parser: argparse.ArgumentParser) -> None:
    """Add --wait-lock."""
    from vbackup.cli.values import seconds  # which 'vbackup --help' does without

    parser.add_argument(
        "--wait-lock",
        metavar="TIME",
        type=seconds,
        default=0.0,
        help="wait up to this time (90, 90s, 5m) for another vbackup that is working on the domain (default: 0)",
    )


def add_backup_words(parser: argparse.ArgumentParser, metavar: str, purpose: str) -> None:
    """Add words that may begin with a domain, whose first id tells where it ends, and --domain in its place."""
    parser.add_argument("words", metavar=metavar, nargs="*", action=ShownAsRequired, help=purpose)
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)


def backup_words_of(options: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Return the domain that add_backup_words' arguments name, or None, and the words from the first id on.

    Raises UsageError.
    """
    from vbackup import names  # which 'vbackup --help' does without

    words: list[str] = list(options.words)
    named: str | None = options.domain_option
    is_id = [names.BACKUP_ID.fullmatch(word) is not None for word in words[:2]]
    if is_id == [False, True]:
        domain = words.pop(0)
        if named is not None and domain != named:
            raise UsageError(f"Two domains given: {domain} and {named}.")
        named = domain
    if not words:
        raise UsageError("No backup given; 'vbackup list DOMAIN' lists ids.")
    if named == "":
        raise UsageError("The domain name is empty.")
    return named, words


def add_host(parser: argparse.ArgumentParser) -> None:
    """Add --host, which selects among the backups of one domain."""
    parser.add_argument("--host", metavar="HOST", help="only backups made on this host: its name or machine id")


def add_point(
    parser: argparse.ArgumentParser, verb: str, *, has_id: bool, disks: tuple[str, str] | None = None
) -> None:
    """Add what chooses a backup and its disks; ``verb``: what is done with them. ``has_id``: ID is positional, too.

    ``disks``: how --disk is shown, and its help.
    """
    from vbackup.cli.values import timestamp  # which 'vbackup --help' does without

    which = parser.add_mutually_exclusive_group()
    purpose = f"backup to {verb} (default: the newest)"
    if has_id:
        add_backup(parser, which, purpose)
    else:
        which.add_argument("--backup", metavar="ID", help=purpose)
    which.add_argument("--at", metavar="TIME", type=timestamp, help=f"{verb} the newest backup made at TIME or before")
    add_host(parser)
    metavar, purpose = disks or ("DEV", f"{verb} only these disks")
    add_devs(parser, "--disk", purpose, metavar=metavar)
    parser.add_argument(
        "--mixed", action="store_true", help=f"{verb} each disk as its newest backup has it, whatever moment that is of"
    )


def wanted_of(options: argparse.Namespace, backup_id: str | None) -> Wanted:
    """Return what add_point's arguments ask for."""
    from vbackup.api import Wanted

    return Wanted(backup_id, options.at, host=options.host, disks=tuple(options.disk), is_mixed=options.mixed)


def add_key_file(parser: argparse.ArgumentParser) -> None:
    """Add --key-file."""
    from vbackup.cli.values import directory as path  # which 'vbackup --help' does without

    parser.add_argument(
        "--key-file",
        metavar="FILE",
        type=path,
        help="file whose only line is the passphrase of what is encrypted in the guest (default: ask on the terminal)",
    )


def add_words(parser: argparse.ArgumentParser, metavar: str, purpose: str) -> None:
    """Add the words of a command, the domain first, between which options can stand (see vbackup.cli.parser.parse)."""
    parser.add_argument("words", metavar=metavar, nargs="*", action=ShownAsRequired, help=purpose)
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    parser.set_defaults(has_loose_words=True)


def domain_and_words_of(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the domain, which is the first of add_words' words or --domain, and the other words. Raises UsageError."""
    words: list[str] = list(options.words)
    named: str | None = options.domain_option
    if words and (named is None or words[0] == named):
        named = words.pop(0)
    if named is None:
        raise UsageError(f"No domain given{swallowed(options)}.")
    if named == "":
        raise UsageError("The domain name is empty.")
    return named, words


def directory_words_of(options: argparse.Namespace) -> tuple[str, str | None, Path]:
    """Return the domain, the id of the backup, or None, and the directory of DOMAIN [ID] DIR.

    Where --domain names the domain, its word can be left out. Raises UsageError.
    """
    words: list[str] = list(options.words)
    named: str | None = options.domain_option
    if not words:
        raise UsageError(f"No directory given{swallowed(options)}.")
    directory = words.pop()
    if words and (named is None or words[0] == named or len(words) > 1):
        domain = words.pop(0)
        if named is not None and domain != named:
            raise UsageError(f"Two domains given: {domain} and {named}.")
        named = domain
    if named is None:
        raise UsageError(f"No domain given: the only word, {directory!r}, is the directory{swallowed(options)}.")
    if "" in (named, directory):
        raise UsageError(f"The {'domain name' if named == '' else 'path of the directory'} is empty.")
    backup_id: str | None = options.backup
    if len(words) > 1:
        raise UsageError(f"Too many words: {' '.join(words[1:])}; give DOMAIN [ID] DIR.")
    if words and backup_id not in (None, words[0]):
        raise UsageError(f"Two backups given: {words[0]} and {backup_id}.")
    return named, words[0] if words else backup_id, Path(directory)


def add_exclusive(parser: argparse.ArgumentParser) -> None:
    """Add --exclusive, for commands that can write to the images of a domain that is off."""
    parser.add_argument(
        "--exclusive",
        action="store_true",
        help="no other host uses the images: bitmaps may be written to block devices and network filesystems, too,"
        " while the domain is off",
    )


def add_scripts(parser: argparse.ArgumentParser) -> None:
    """Add the options of the user's scripts (vbackup.cli.script_options)."""
    from vbackup.cli.values import directory, positive_seconds  # which 'vbackup --help' does without

    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--scripts",
        metavar="DIR",
        type=directory,
        help="run the scripts in DIR (default: VBACKUP_SCRIPTS, or /etc/vbackup/scripts.d if it exists)",
    )
    which.add_argument("--no-scripts", action="store_true", help="run no scripts")
    parser.add_argument(
        "--script-timeout",
        metavar="TIME",
        type=positive_seconds,
        help="end a script that takes longer than this (90, 90s, 5m) (default: 5m)",
    )


def add_qemu(parser: argparse.ArgumentParser) -> None:
    """Add the QEMU to work on: a domain's, one with a QMP socket, or a storage daemon on image files."""
    add_domain(parser, otherwise=" (or give --socket or --image)")
    parser.add_argument("--socket", metavar="PATH", help="instead of a domain: QMP socket of a QEMU without libvirt")
    parser.add_argument(
        "--image",
        metavar="[raw:]FILE",
        nargs="+",
        action="extend",
        default=[],
        help="instead of a domain: image files that no process has open, named vda, vdb, ... in this order",
    )
    add_exclusive(parser)


def domain_of(options: argparse.Namespace) -> str:
    """Return the domain that add_domain's arguments name. Raises UsageError if there is none."""
    domain = optional_domain_of(options)
    if domain is None:
        raise UsageError(f"No domain given{_why_none(options)}.")
    return domain


def swallowed(options: argparse.Namespace) -> str:
    """Return which words --disk, or an option like it, may have taken from others, as the end of a sentence, or ""."""
    greedy: str = getattr(options, "greedy", "")
    return greedy


def _why_none(options: argparse.Namespace) -> str:
    """Return where the word for the domain may be instead, as the end of a sentence, or ""."""
    only = getattr(options, "name", None)  # of a bitmap
    if swallowed(options) or only is None:
        return swallowed(options)
    return f": the only word, {only!r}, is the name of the bitmap. Give the domain before it, or --socket or --image"


def optional_domain_of(options: argparse.Namespace) -> str | None:
    """Return the domain that add_domain's arguments name, or None. Raises UsageError."""
    named: str | None = options.domain_option
    positional: str | None = options.domain
    if named is not None and positional is not None and named != positional:
        raise UsageError(f"Two domains given: {positional} and {named}.")
    domain = positional if named is None else named
    if domain == "":
        raise UsageError("The domain name is empty.")
    return domain


def domains_of(options: argparse.Namespace) -> list[str]:
    """Return the words that add_domains' arguments name domains with; none for --all. Raises UsageError."""
    words = domain_words_of(options)
    if options.exclude and not options.all and not any(map(_is_pattern, words)):
        raise UsageError("--exclude needs --all or a pattern; without, give only the domains to back up.")
    if not options.all and not words:
        raise UsageError(f"No domain given{_why_none(options)}.")
    return words


def _is_pattern(word: str) -> bool:
    from vbackup import names  # which 'vbackup --help' does without

    return names.is_pattern(word)


def domain_words_of(options: argparse.Namespace) -> list[str]:
    """Return the words that name domains, by position, with --domain or with neither. Raises UsageError."""
    named: str | None = getattr(options, "domain_option", None)
    words: list[str] = options.domains if named is None else [named]
    for word in options.domains:
        if word not in words:
            raise UsageError(f"Two domains given: {word} and {named}.")
    if getattr(options, "all", False) and words:
        raise UsageError("Give domains or --all, not both.")
    if "" in words:
        raise UsageError("The domain name is empty.")
    return words


def add_asked(parser: argparse.ArgumentParser) -> None:
    """Add what a command asks of whether everything is backed up (vbackup.cli.overviews)."""
    from vbackup.cli.values import age_s  # which 'vbackup --help' does without

    parser.add_argument("jobs", metavar="JOB", nargs="*", help="names of jobs (default: all)")
    parser.add_argument(
        "--max-age",
        metavar="TIME",
        type=age_s,
        help="how old the newest backup of a domain may be, such as 26h or 8d (default: what its job promises)",
    )
    parser.add_argument(
        "--offline", action="store_true", help="do not ask libvirt which domains there are, and which are gone"
    )
