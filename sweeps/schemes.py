"""The kinds of remote storage, and how the library of each is opened: no listings kept, an end to every wait, no words of its own.

The libraries read keys and endpoints from the environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`,
`GOOGLE_APPLICATION_CREDENTIALS`, `STORAGE_EMULATOR_HOST`, `AZURE_STORAGE_CONNECTION_STRING`, ...); a sweep file holds none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CONNECT_SECONDS, READ_SECONDS = 10, 60


@dataclass(frozen=True)
class Scheme:
    """A kind of remote storage.

    Attributes:
        package: that serves it through fsspec.
        extra: of our distribution, that brings the package.
        errors: `module:class` of what the package raises besides `OSError` and `ValueError`.
        opens: makes its filesystem; raises these errors where the environment is not what it needs.
        mend: what to look at where a request is refused.
    """

    package: str
    extra: str
    errors: tuple[str, ...]
    opens: Callable[[], Any]
    mend: str

    def raised(self) -> tuple[type[Exception], ...]:
        """What its filesystem raises; `ValueError` is how a bad setting is told, and a bad request by gcsfs."""
        return (OSError, ValueError, *(_class(text) for text in self.errors))


def _s3() -> Any:
    from s3fs import S3FileSystem

    waits = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    return S3FileSystem(skip_instance_cache=True, use_listings_cache=False, config_kwargs=waits)


def _gs() -> Any:
    """Without the class that gcsfs puts before this one.

    It asks the bucket's kind of another server before each request, says on standard error that it got no answer, and writes
    over what is there in zonal buckets where it was told not to, so that two drivers could hold one lease.
    """
    from aiohttp import ClientTimeout
    from gcsfs.core import GCSFileSystem

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
    waits = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return GCSFileSystem(skip_instance_cache=True, use_listings_cache=False, requests_timeout=waits)


def _az() -> Any:
    """With a client that gives up after 15 seconds of retries; adlfs leaves it at 90, and takes no setting for it."""
    from adlfs import AzureBlobFileSystem
    from azure.storage.blob.aio import BlobServiceClient, ExponentialRetry

    for name in ("azure.core", "azure.identity"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it logs what it raises, a page long
    files = AzureBlobFileSystem(skip_instance_cache=True, use_listings_cache=False)
    retry = ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=3, random_jitter_range=1)
    waits = {"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    client = files.service_client
    files.service_client = BlobServiceClient(client.url, credential=client.credential, retry_policy=retry, **waits)
    return files


SCHEMES: dict[str, Scheme] = {
    "s3": Scheme(
        "s3fs",
        "s3",
        ("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError", "aiohttp:ClientError"),
        _s3,
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL",
    ),
    "gs": Scheme(
        "gcsfs",
        "gcs",
        (
            "gcsfs.retry:HttpError",
            "gcsfs.retry:ChecksumError",
            "gcsfs.retry:NonRetryableError",
            "google.auth.exceptions:GoogleAuthError",
            "aiohttp:ClientError",
        ),
        _gs,
        "GOOGLE_APPLICATION_CREDENTIALS (and STORAGE_EMULATOR_HOST, where it is not Google's)",
    ),
    "az": Scheme(
        "adlfs",
        "azure",
        ("azure.core.exceptions:AzureError", "aiohttp:ClientError"),
        _az,
        "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    ),
}
"""Scheme of a URL -> what serves it."""
ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "azure": "az", "adl": "az"}
"""What others call them."""


def problem(url: str) -> str | None:
    """What is wrong with a storage URL of a sweep file; None where nothing is. Asks nobody."""
    scheme, _, rest = url.partition("://")
    if scheme in ALIASES:
        return f"write {ALIASES[scheme]}://{rest} for {scheme}://"
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://bucket/prefix" for name in SCHEMES)
        return f"'{scheme}://' is no storage; give a folder, or {known}"
    if "@" in rest or "?" in rest or "#" in rest:
        return f"holds more than a bucket and a prefix; keys and endpoints come from the environment ({SCHEMES[scheme].mend})"
    parts = rest.rstrip("/").split("/")
    if not parts[0] or any(part in ("", ".", "..") for part in parts):
        return f"names no bucket, or an empty part; write {scheme}://bucket/prefix"
    return missing_package(scheme)


def missing_package(scheme: str) -> str | None:
    """The message where a scheme's package is not installed."""
    need = SCHEMES[scheme]
    if importlib.util.find_spec(need.package) is None:
        return f"{scheme}:// needs the package {need.package}, which is not installed: pip install 'stockpot[{need.extra}]'"
    return None


def _class(text: str) -> type[Exception]:
    module, _, name = text.partition(":")
    found: type[Exception] = getattr(importlib.import_module(module), name)
    return found
