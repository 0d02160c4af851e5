"""The stores of each cloud, with what the user has set for it. Only this module and those it imports need obstore."""

from __future__ import annotations

from typing import Any

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore

from vbackup.errors import StorageError
from vbackup.stores.cloud import (
    AZURE_MAX_PARTS,
    MAX_PARTS,
    RETRY_S,
    CloudFault,
    CloudStore,
    client_options,
    retry_options,
    without_secrets,
)
from vbackup.stores.s3 import S3Store
from vbackup.stores.settings import Settings
from vbackup.stores.store import Store

_KINDS = {"az": (AzureStore, "AZURE_", AZURE_MAX_PARTS), "gs": (GCSStore, "GOOGLE_", MAX_PARTS)}


#: A wrong endpoint should be reported soon.
_OPEN_S = 15.0


def opened(scheme: str, bucket: str, prefix: str, settings: Settings, *, retry_s: float = RETRY_S) -> Store:
    """Return a prefix of a bucket or container as a store.

    ``retry_s``: how long requests to Azure or Google are repeated. Raises StorageError, also if there is no
    such bucket, StoreUnreachableError, UsageError.
    """
    if scheme == "s3":
        return S3Store(bucket, prefix, settings)
    kind, names, max_parts = _KINDS[scheme]
    # obstore knows the names of the environment, and finds those by itself; the file's take precedence.
    own: dict[str, Any] = {name.lower(): value for name, value in settings.own.items() if name.startswith(names)}
    name = f"{scheme}://{bucket}/{prefix}".rstrip("/")

    def connected(some_s: float) -> CloudStore:
        made: Any = kind(bucket, config=own, client_options=client_options(), retry_config=retry_options(some_s))  # type: ignore[arg-type]
        return CloudStore(name, made, prefix, retry_s=some_s, max_parts=max_parts)

    try:
        first, store = (connected(some_s) for some_s in (min(retry_s, _OPEN_S), retry_s))
    except (BaseError, ValueError) as err:
        text = without_secrets(str(err))
        first_line = next(iter(text.splitlines()), "its settings are refused").rstrip(".")
        raise StorageError(f"Cannot use {name}: {first_line}.") from CloudFault(text)
    first.refuse_bucket()
    return store
