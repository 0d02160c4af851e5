"""All keys of the configuration, as data: the loader, its JSON schema, vbackup.toml(5) and the tests read these tables.

A key of a command has the name of the long option without its dashes, and takes what the option takes. NOT_KEYS says
which options are no keys, and why; a test compares both with the parsers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from vbackup.config import values
from vbackup.model import Compression, Level, Quiesce, Transport


class Kind(Enum):
    """What the value of a key is in TOML."""

    FLAG = "true or false"
    WORD = "one of the words"
    FLAG_OR_WORD = "true, false or one of the words"
    TEXT = "a string"
    PATH = "a string with an absolute path"
    NUMBER = "a whole number"
    PERCENT = "a number or a string such as '5%'"
    RATE = "a string such as '50M', or a number of bytes per second"
    SIZE = "a string such as '4G', or a number of bytes"
    TIME = "a string such as '90s', '5m' or '26h', or a number of seconds"
    DURATION = "a string such as '14d' or '1y6m'"
    MILLISECONDS = "a string such as '20ms', or a number of milliseconds"
    LIST = "a string, or an array of strings"
    PATHS = "a string or an array of strings with absolute paths"
    SECRET = "one of { file = PATH }, { command = [WORD, ...] } and { credential = NAME }"  # noqa: S105
    DAY_TIMES = "'hourly', a time such as '01:00', or an array of times"
    DAYS = "an array of days such as ['sat', 'sun']"
    WINDOW = "a string such as '22:00-06:00'"
    TABLE = "a table"


#: The kinds whose value may be written as a number.
NUMBERS = frozenset({Kind.NUMBER, Kind.PERCENT, Kind.RATE, Kind.SIZE, Kind.TIME, Kind.MILLISECONDS})
#: The kinds whose value is several texts.
LISTS = frozenset({Kind.LIST, Kind.PATHS})


@dataclass(frozen=True)
class Key:
    """A key of a table."""

    name: str
    kind: Kind
    help: str  #: a phrase, as in --help
    check: Callable[[str], object] | None = (
        None  #: raises ValueError for a text (each one of several) that is not valid
    )
    choices: tuple[str, ...] = ()
    default: str | None = None  #: what holds without it, as vbackup.toml(5) and ``config show`` have it
    is_required: bool = False


#: The schemes of targets; those of buckets have no user.
CLOUDS = ("s3", "az", "gs")
SCHEMES = ("file", "ssh", *CLOUDS)


def _target(text: str) -> str:
    if "://" not in text and text.startswith("/"):
        return text
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES or "://" not in text:
        raise ValueError("it should be an absolute path, or an address such as ssh://HOST/DIR or s3://BUCKET/PREFIX")
    if parts.password is not None or (parts.scheme in CLOUDS and "@" in parts.netloc):  # nothing of it is shown
        raise ValueError("it has a secret in it, and the configuration has none: see target-config")
    return text


def _words(enum: type[Enum]) -> tuple[str, ...]:
    return tuple(str(one.value) for one in enum)


def _recipient(text: str) -> str:
    if not text.startswith("age1") or not text.isalnum():
        raise ValueError("a recipient begins with age1, and has letters and digits only")
    return text


def _identity(text: str) -> str:
    if text.upper().startswith("AGE-SECRET-KEY-"):
        raise ValueError("the configuration has no secrets: put the identity into a file, and give its path")
    return text


def _text(text: str) -> str:
    if not text:
        raise ValueError("it is empty")
    return text


_DISKS = "names of disks, such as 'vda'"
_WAIT_LOCK = Key(
    "wait-lock",
    Kind.TIME,
    "wait up to this time for another vbackup that is working on the domain",
    values.seconds,
    default="0",
)
_EXCLUSIVE = Key(
    "exclusive",
    Kind.FLAG,
    "no other host uses the images: bitmaps may be written to block devices and network filesystems, too, while the"
    " domain is off",
)
_MAX_LATENCY = Key(
    "max-latency",
    Kind.MILLISECONDS,
    "go more slowly while the guest's own requests take longer than this on average",
    values.milliseconds,
)

BACKUP = (
    Key("level", Kind.WORD, "how much to copy", choices=_words(Level), default="auto"),
    Key(
        "full-every",
        Kind.TIME,
        "with level auto: make a full backup when the newest full one is older than this",
        values.age_s,
    ),
    Key("parallel", Kind.NUMBER, "number of domains to back up at once", values.count, default="4"),
    Key(
        "parallel-per-host",
        Kind.NUMBER,
        "number of domains of each host to back up at once",
        values.count,
        default="as many as on all together",
    ),
    Key("group", Kind.FLAG, "back up all domains at the same moment, all or none"),
    Key("disk", Kind.LIST, f"back up only these disks: {_DISKS}", _text),
    Key("exclude-disk", Kind.LIST, f"do not back up these disks: {_DISKS}", _text),
    _EXCLUSIVE,
    Key("quiesce", Kind.WORD, "freeze the guest's filesystems", choices=_words(Quiesce), default="auto"),
    Key(
        "freeze-limit",
        Kind.TIME,
        "thaw the filesystems after this time in any case",
        values.freeze_limit_s,
        default="10s",
    ),
    Key("speed", Kind.RATE, "limit the copy speed of each disk", values.speed_bytes_s),
    Key(
        "total-speed",
        Kind.RATE,
        "limit the copy speed of all disks of all domains together",
        values.speed_bytes_s,
    ),
    _MAX_LATENCY,
    Key(
        "compress",
        Kind.FLAG_OR_WORD,
        "compress the images; true: auto",
        choices=_words(Compression),
        default="none",
    ),
    Key(
        "allow-reflink",
        Kind.FLAG,
        "let images share data with the disks, where both are on one filesystem that can do that",
    ),
    _WAIT_LOCK,
    Key(
        "fleecing",
        Kind.PATH,
        "directory on a fast disk of the domain's host, where data is saved before the guest overwrites it",
        default="/var/tmp for data that comes by SSH",  # noqa: S108 - a text
    ),
    Key("no-fleecing", Kind.FLAG, "let the guest wait for the network, where data comes by SSH"),
    Key(
        "transport",
        Kind.WORD,
        "how the data comes here from another host",
        choices=_words(Transport),
        default="auto",
    ),
    Key("listen", Kind.TEXT, "with transport tls: HOST:PORT[-PORT] of this host", values.host_and_ports),
    Key("tls-creds", Kind.PATH, "with transport tls: directory of this host with its certificates"),
    Key(
        "hypervisor-tls-creds",
        Kind.PATH,
        "with transport tls: directory of the hypervisor with its certificates",
        default="/etc/pki/libvirt-nbd or /etc/pki/qemu",
    ),
    Key("with-media", Kind.FLAG, "back up the media in CD-ROM and floppy drives too"),
    Key("scripts", Kind.PATH, "run the scripts in this directory", default="/etc/vbackup/scripts.d if it exists"),
    Key("no-scripts", Kind.FLAG, "run no scripts"),
    Key("script-timeout", Kind.TIME, "end a script that takes longer than this", values.positive_seconds, default="5m"),
    Key("note", Kind.TEXT, "a line of text for people, which list and show print with the backup", values.note),
)

_RULES = (
    Key("keep-last", Kind.NUMBER, "keep this number of newest backups", values.keep_count),
    Key(
        "keep-within",
        Kind.DURATION,
        "keep all backups made within this time before the newest",
        values.keep_within,
    ),
    *(
        Key(
            f"keep-{rule}",
            Kind.NUMBER,
            f"keep the newest backup of each of the last {period}, this number of them",
            values.keep_count,
        )
        for rule, period in (
            ("hourly", "hours"),
            ("daily", "days"),
            ("weekly", "weeks"),
            ("monthly", "months"),
            ("yearly", "years"),
        )
    ),
)
#: The names of the keys that are rules: without one, there is nothing to prune.
RULES = frozenset(key.name for key in _RULES)

PRUNE = (
    *_RULES,
    Key(
        "consolidate",
        Kind.WORD,
        "how a removed backup gives its data to those that depend on it",
        choices=("auto", "reflink", "in-place", "copy", "never"),
        default="auto",
    ),
    Key(
        "max-chain",
        Kind.NUMBER,
        "also merge backups until no image has a chain of more images than this",
        values.count,
    ),
    _WAIT_LOCK,
)

_SAMPLE = Key("sample", Kind.PERCENT, "read a random part of the blocks of each image", values.percent)
_VERIFY_PARALLEL = Key(
    "parallel", Kind.NUMBER, "number of images to read at once", values.count, default="4, or the number of processors"
)
_VERIFY_SPEED = Key("speed", Kind.RATE, "limit of the reading", values.speed_bytes_s)

VERIFY = (
    _SAMPLE,
    _VERIFY_PARALLEL,
    _VERIFY_SPEED,
    Key("disk", Kind.LIST, f"verify only these disks: {_DISKS}", _text),
    Key("force", Kind.FLAG, "do not go on where a verify was stopped: read everything again"),
    Key("boot", Kind.FLAG, "boot a copy of the newest backup, and see that its guest works"),
    Key(
        "boot-exec",
        Kind.TEXT,
        "with boot: the guest agent runs this command in the guest, which has to exit with status 0",
        values.guest_command,
    ),
    Key(
        "boot-console",
        Kind.TEXT,
        "with boot: this regular expression has to match what is written to the serial console",
        values.console_pattern,
    ),
    Key("boot-screen", Kind.FLAG, "with boot: the screen has to be in use, whatever else is asked for"),
    Key("boot-timeout", Kind.TIME, "with boot: how long it may take", values.positive_seconds, default="5m"),
    Key(
        "boot-memory",
        Kind.SIZE,
        "with boot: memory of the copy, if that is less than the domain's",
        values.memory_bytes,
        default="2G",
    ),
    Key("fsck", Kind.FLAG, "check the file systems of the newest backup, in libguestfs's appliance"),
)

AUDIT = (
    Key(
        "sample",
        Kind.PERCENT,
        "how much to read of what has not changed since the newest backup",
        values.percent,
        default="1",
    ),
    Key("disk", Kind.LIST, f"audit only these disks: {_DISKS}", _text),
    _MAX_LATENCY,
    Key("speed", Kind.RATE, "limit the reading of each disk", values.speed_bytes_s),
    Key(
        "scratch",
        Kind.PATH,
        "directory for what is read until it is compared",
        default="in the repository",
    ),
    _EXCLUSIVE,
    _WAIT_LOCK,
)

_IDENTITY = Key(
    "identity",
    Kind.LIST,
    "age identity that opens an encrypted target: a file that only you can read, or command:PROGRAM which prints it",
    _identity,
)
_TARGET_CONFIG = Key(
    "target-config",
    Kind.PATH,
    "file that only you can read, with keys and endpoint of a target in a bucket, as lines NAME=VALUE",
    default="the environment, then ~/.aws",
)
_CACHE = Key(
    "cache",
    Kind.PATH,
    "directory for manifests, and for images until the command ends",
    default="/var/cache/vbackup, or ~/.cache/vbackup",
)

COPY = (
    Key(
        "full-every",
        Kind.NUMBER,
        "let no image at the target have a chain of more images than this: then a full goes there",
        values.count,
    ),
    Key("bwlimit", Kind.RATE, "limit of the sending", values.speed_bytes_s),
    Key("parallel", Kind.NUMBER, "number of objects of a backup to send at once", values.count, default="4"),
    Key("recipient", Kind.LIST, "encrypt with age, to these recipients (age1...)", _recipient),
    Key("recipients-file", Kind.PATHS, "encrypt with age, to the recipients in these files, one a line"),
    _IDENTITY,
    _TARGET_CONFIG,
    Key(
        "immutable",
        Kind.NUMBER,
        "in a directory: let nobody change or remove backups there for this number of days after they were copied",
        values.count,
    ),
    _WAIT_LOCK,
)

COPY_PRUNE = (*_RULES, _IDENTITY, _TARGET_CONFIG, _CACHE, _WAIT_LOCK)

COPY_VERIFY = (
    Key("sample", Kind.PERCENT, "read random objects until this part of all bytes is read", values.percent),
    _VERIFY_PARALLEL,
    _VERIFY_SPEED,
    _IDENTITY,
    _TARGET_CONFIG,
    _CACHE,
)

#: Options of a job, by command.
JOB_COMMANDS: Mapping[str, tuple[Key, ...]] = {"backup": BACKUP, "prune": PRUNE, "verify": VERIFY, "audit": AUDIT}
#: Options of a target, by command. Those that open it hold for all its commands, if only one of them has them.
TARGET_COMMANDS: Mapping[str, tuple[Key, ...]] = {"copy": COPY, "prune": COPY_PRUNE, "verify": COPY_VERIFY}
OPENING = ("identity", "target-config")

#: Options that cannot both be given.
EXCLUSIVE: tuple[tuple[str, str, str], ...] = (
    ("backup", "fleecing", "no-fleecing"),
    ("backup", "scripts", "no-scripts"),
)
#: Options that need another one, with the value it must have, or None for any.
NEEDS: tuple[tuple[str, str, str, str | None], ...] = (
    *(("backup", name, "transport", "tls") for name in ("listen", "tls-creds", "hypervisor-tls-creds")),
    ("backup", "full-every", "level", "auto"),
    *(("verify", f"boot-{name}", "boot", None) for name in ("exec", "console", "screen", "timeout", "memory")),
)

REPOSITORY = (Key("path", Kind.PATH, "directory of the repository", is_required=True),)

TARGET = (Key("url", Kind.TEXT, "the target of copies: a directory or a URL", _target, is_required=True),)

JOB = (
    Key("repository", Kind.TEXT, "name of the repository", default="the only one"),
    Key("connect", Kind.LIST, "libvirt connection URIs", _text, default="what libvirt finds"),
    Key("hosts", Kind.PATH, "file of libvirt URIs, one a line"),
    Key("domains", Kind.LIST, "names, UUIDs and patterns of the domains", _text, default="all"),
    Key("exclude", Kind.LIST, "names, UUIDs and patterns of the domains to leave out", _text),
    Key("at", Kind.DAY_TIMES, "when the job is to run, in local time", default="when somebody runs it"),
    Key("on", Kind.DAYS, "the days on which it is to run", default="every day"),
    Key("window", Kind.WINDOW, "the part of the day in which backups may begin"),
    Key(
        "random-delay",
        Kind.TIME,
        "begin up to this time later, so that not all machines begin at once",
        values.delay_s,
        default="0",
    ),
    Key(
        "max-age",
        Kind.TIME,
        "what the job promises: the age of each domain's newest backup",
        values.age_s,
        default="the longest time between two runs, and two hours",
    ),
    Key("copy-to", Kind.LIST, "names of the targets to copy to", _text),
    Key("notify", Kind.LIST, "names of the notifiers that are told", default="all"),
)

WHEN = ("failure", "recovery", "overdue", "unusual", "always")

NOTIFIER = (
    Key("when", Kind.LIST, "what is told", choices=WHEN, default="failure, recovery, overdue, unusual"),
    Key("mail-to", Kind.LIST, "addresses of mail, which sendmail sends", _text),
    Key("mail-from", Kind.TEXT, "the sender's address", _text, default="the user's"),
    Key("ping", Kind.SECRET, "a URL as of healthchecks.io, which is asked for at the start and at the end of a run"),
    Key("sendmail", Kind.PATH, "the program that takes mail", default="/usr/sbin/sendmail, or sendmail in PATH"),
    Key("webhook", Kind.SECRET, "a URL to which the report of a run is sent as JSON"),
    Key("secret", Kind.SECRET, "the key that signs what a webhook gets: any text, or whsec_ and base64"),
    Key("apprise", Kind.SECRET, "a URL of apprise"),
    Key("timeout", Kind.TIME, "how long all attempts may take together", values.positive_seconds, default="30s"),
)
#: Exactly one of them makes a notifier.
WAYS = ("mail-to", "ping", "webhook", "apprise")

METRICS = (Key("textfile", Kind.PATH, "file for the metrics, written after every run"),)

REPORT = (
    Key("html", Kind.PATH, "file for the report as a page, written after every run"),
    Key("text", Kind.PATH, "file for the report as text, written after every run"),
)

SECRET = (
    Key("file", Kind.PATH, "a file that only you can read"),
    Key("command", Kind.LIST, "a program and its arguments; it prints the secret"),
    Key("credential", Kind.TEXT, "name of a credential of systemd", check=values.credential_name),
)

#: The tables with a name: [job.NAME].
NAMED: Mapping[str, tuple[Key, ...]] = {
    "repository": REPOSITORY,
    "target": TARGET,
    "job": JOB,
    "notify": NOTIFIER,
}
#: The tables without.
SINGLE: Mapping[str, tuple[Key, ...]] = {"defaults": JOB, "metrics": METRICS, "report": REPORT}
#: The tables within a table, by its kind.
BELOW: Mapping[str, Mapping[str, tuple[Key, ...]]] = {
    "target": TARGET_COMMANDS,
    "job": JOB_COMMANDS,
    "defaults": JOB_COMMANDS,
}

_COMMON = "it is the same for all commands"
_JOB = "a key of the job has its place"
_ONCE = "it is about one run, by hand"
#: The long options that are no keys, by command: why.
NOT_KEYS: Mapping[str, Mapping[str, str]] = {
    "": dict.fromkeys(("help", "quiet", "verbose", "repository", "json", "progress", "connect", "config"), _COMMON),
    "backup": {
        **dict.fromkeys(("domain", "all", "exclude", "hosts"), _JOB),
        "until": "it is the end of the job's window",
        "strict": "a run always gives it",
        "dry-run": _ONCE,
    },
    "prune": {
        **dict.fromkeys(("domain", "all"), _JOB),
        **dict.fromkeys(("remove", "dry-run"), _ONCE),
        **dict.fromkeys(("at", "cache", "identity", "target-config"), "[target.NAME.prune] has it"),
        "take-over": "somebody has to know that the other machine is dead",
    },
    "verify": {
        **dict.fromkeys(("domain", "all"), _JOB),
        "backup": _ONCE,
        **dict.fromkeys(("from", "cache", "identity", "target-config"), "[target.NAME.verify] has it"),
    },
    "audit": {"domain": _JOB},
    "copy": {
        **dict.fromkeys(("domain", "all"), _JOB),
        "to": "the target's url has its place",
        **dict.fromkeys(("since", "rewrap", "dry-run"), _ONCE),
        "take-over": "somebody has to know that the other machine is dead",
    },
}
