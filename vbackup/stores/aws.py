"""Where a bucket of S3 is and with which keys it is used, as Amazon's own tools find it out.

Keys come from the settings (a file of the target or the environment), else from a profile in ~/.aws, which can name a
program that prints temporary ones (credential_process): that is how roles and single sign-on work here.
"""

from __future__ import annotations

import configparser
import json
import shlex
import ssl
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import urlsplit

from vbackup.errors import StorageError, UsageError
from vbackup.stores.signing import Keys

_REGION = "us-east-1"  # what other servers than Amazon's expect if it is set nowhere
_PROGRAM_S = 60
#: Temporary keys are asked for again so long before they expire: a request can wait for its repetition.
_EARLY = timedelta(minutes=5)


@dataclass(frozen=True)
class Endpoint:
    """Where a bucket is."""

    url: str  #: without the bucket: scheme, host and port
    region: str
    is_virtual_hosted: bool  #: the bucket is a part of the host's name, not of the path
    authorities: Path | None = None  #: file with the certificates to trust, in PEM (default: those of the system)

    @property
    def is_encrypted(self) -> bool:
        """True if requests go over TLS."""
        return self.url.startswith("https://")


def endpoint(settings: Mapping[str, str]) -> Endpoint:
    """Return the endpoint that is set, else Amazon's of the region. Raises UsageError, StorageError."""
    profile = _profile(settings)
    region = settings.get("AWS_REGION") or settings.get("AWS_DEFAULT_REGION") or profile.get("region") or _REGION
    url = (
        settings.get("AWS_ENDPOINT_URL_S3")
        or settings.get("AWS_ENDPOINT_URL")
        or profile.get("endpoint_url")
        or f"https://s3.{region}.amazonaws.com"
    ).rstrip("/")
    if not _is_endpoint(url):
        shown = repr(url) if "@" not in url else "What the settings have"  # before an @ is a password
        raise UsageError(f"{shown} is not an endpoint of S3: it should be like https://s3.example.com:9000.")
    is_virtual_hosted = settings.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("1", "true")
    return Endpoint(url, region, is_virtual_hosted, _authorities(settings) if url.startswith("https:") else None)


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is none
    except ValueError:
        return False
    is_host = parts.hostname is not None and "@" not in parts.netloc
    return parts.scheme in ("http", "https") and is_host and not parts.path and not parts.query


def _authorities(settings: Mapping[str, str]) -> Path | None:
    path = settings.get("AWS_CA_BUNDLE")
    if not path:
        return None
    try:
        ssl.create_default_context(cafile=path)
    except OSError as err:  # ssl's are, too
        why = "it has no certificates in PEM" if isinstance(err, ssl.SSLError) else err.strerror or err
        raise StorageError(f"Cannot use {path}, which AWS_CA_BUNDLE names: {why}.") from err
    return Path(path)


class KeySource:
    """Has the current keys, for several threads."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._keys: Keys | None = None

    def current(self) -> Keys:
        """Return keys that are valid for some minutes. Raises StorageError."""
        with self._lock:
            keys = self._keys
            if keys is None or (keys.expires is not None and keys.expires - _EARLY < datetime.now(timezone.utc)):
                keys = self._keys = _find(self._settings)
            return keys


def _find(settings: Mapping[str, str]) -> Keys:
    for values, names in (
        (settings, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")),
        (_profile(settings), ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")),
    ):
        access, secret, token = (values.get(name) for name in names)
        if access and secret:
            return Keys(access, secret, token or None)
    command = _profile(settings).get("credential_process")
    if command:
        return _from_program(command)
    raise StorageError(
        "There are no keys for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment or in the file"
        " of --target-config, or AWS_PROFILE to a profile in ~/.aws/credentials."
    )


def _profile(settings: Mapping[str, str]) -> dict[str, str]:
    """Return what the user's two files have about the profile: the one with keys counts first."""
    name = settings.get("AWS_PROFILE") or "default"
    home = Path(settings.get("HOME", "~")).expanduser() / ".aws"
    found: dict[str, str] = {}
    for path, section in (
        (settings.get("AWS_CONFIG_FILE") or home / "config", name if name == "default" else f"profile {name}"),
        (settings.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials", name),
    ):
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, UnicodeDecodeError, configparser.Error) as err:
            # configparser's words have the line, which can be a secret.
            raise StorageError(f"Cannot read {path}: {getattr(err, 'strerror', None) or 'it is malformed'}.") from None
        if parser.has_section(section):
            found.update(parser.items(section))
    if not found and settings.get("AWS_PROFILE"):
        raise StorageError(f"There is no profile {name!r} in {home}: correct AWS_PROFILE.")
    return found


def _from_program(command: str) -> Keys:
    """Return the keys that a program of the user's prints, as Amazon's tools specify it for credential_process."""
    try:
        argv = shlex.split(command)
    except ValueError as err:
        raise StorageError(f"The credential_process of the profile is not a command: {err}.") from None
    if not argv:
        raise StorageError("The credential_process of the profile is empty.")
    try:
        run = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROGRAM_S, check=True)
        printed = json.loads(run.stdout)
        expires = printed.get("Expiration")
        return Keys(
            str(printed["AccessKeyId"]),
            str(printed["SecretAccessKey"]),
            printed.get("SessionToken"),
            _time(expires) if expires else None,
        )
    except (OSError, subprocess.SubprocessError) as err:
        why = getattr(err, "strerror", None) or _last_line(getattr(err, "stderr", None)) or type(err).__name__
        raise StorageError(f"{argv[0]}, the credential_process of the profile, failed: {why}.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StorageError(f"{argv[0]}, the credential_process of the profile, printed no keys.") from None


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return time if time.tzinfo is not None else time.replace(tzinfo=timezone.utc)


def _last_line(output: bytes | None) -> str:
    lines = (output or b"").decode(errors="replace").split("\n")
    return next((line.strip().rstrip(".") for line in reversed(lines) if line.strip()), "")
