"""What the hub refuses or fails to give, as one line: the fact, the value and the remedy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from steps.records.errors import StepError

ONLY_CACHED = "fetch_model.offline=true takes what the cache holds"


def token() -> str | bool:
    """Return HF_TOKEN, or False, which makes huggingface_hub send none; it would look for one in files as well."""
    return os.environ.get("HF_TOKEN", "").strip() or False


@contextmanager
def explaining(repository: str, revision: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a StepError."""
    try:
        yield
    # hf_xet knows no class of error for most of what can happen to it.
    except (httpx.HTTPError, OSError, RuntimeError) as error:
        raise StepError(_explain(error, repository, revision)) from error


def _explain(error: BaseException, repository: str, revision: str) -> str:
    """Return *error* as fact, value and remedy in one line."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # what kept huggingface_hub from downloading
    where, hub, has_token = f"{repository}@{revision}", constants.ENDPOINT, bool(token())
    if isinstance(error, HfHubHTTPError):
        status, url = error.response.status_code, error.response.url.copy_with(query=None)  # it may hold a signature
        said = " ".join(f"{status} {error.server_message or ''}".split())
        if isinstance(error, GatedRepoError):
            who = "with the account of HF_TOKEN" if has_token else "and set HF_TOKEN to a token of yours"
            return f"{repository} is gated ({said}): accept its licence at {hub}/{repository} {who}"
        if isinstance(error, RepositoryNotFoundError):
            if has_token:
                return f"{hub} knows no {repository} that HF_TOKEN may read: check the name, or give that token access"
            return f"{hub} knows no public {repository}: check the name, or set HF_TOKEN if the repository is private"
        if isinstance(error, RevisionNotFoundError):
            return f"{repository} has no revision {revision}: name a branch, a tag or a commit that is there"
        if isinstance(error, RemoteEntryNotFoundError):
            return f"{where} lists a file that the hub does not have ({url}): try again later, or another revision"
        if status == httpx.codes.UNAUTHORIZED:
            return f"{hub} does not accept HF_TOKEN ({said}): set one that is valid, from {hub}/settings/tokens"
        if status == httpx.codes.FORBIDDEN:
            remedy = "give HF_TOKEN the right to read it" if has_token else "set HF_TOKEN to a token that may read it"
            return f"the hub refuses {url} ({said}): {remedy}"
        wait = error.response.headers.get("Retry-After")
        later = f"try again after {wait} s" if wait else "try again later"
        return f"the hub answers {status} for {url}: {later}; {ONLY_CACHED}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, so {where} cannot be looked up: unset it; {ONLY_CACHED}"
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, httpx.TransportError):
        return f"{hub} does not answer for {where} ({said}): check the network; {ONLY_CACHED}"
    return f"{where} could not be downloaded ({said}): run again"
