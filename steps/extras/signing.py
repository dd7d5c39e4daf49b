"""Signatures over a model's folder, with a local key: OpenSSF model signing, https://github.com/ossf/model-signing-spec.

The signature is an artifact of the run that made it; the version's tag `signature` says where. It can be verified with
the public key, here or with the `model_signing` command.
"""

import base64
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from steps.records.errors import StepError, first_line
from steps.records.files import files_below

SIGNATURE = "signature"
"""The tag of a version that holds the URI of its signature, and the folder of a run's artifacts for signatures."""

PASSWORD = "SIGN_KEY_PASSWORD"  # noqa: S105  the name of a variable
"""The environment variable that holds the password of an encrypted private key."""

ADDED = "registered_model_meta"
"""The file that MLflow adds to a registered model on download."""


def require_key(private_key: Path) -> None:
    """Raise StepError unless *private_key* can sign."""
    with tempfile.TemporaryDirectory() as work:
        model = Path(work) / "model"
        model.mkdir()
        (model / "file").touch()
        _sign(model, Path(work) / "signature", private_key)


def sign_version(version: ModelVersion, private_key: Path, folder: Path) -> None:
    """Sign the model of *version*, which is in *folder*; log the signature on the active run, and tag the version.

    Raises StepError for a key that cannot sign.
    """
    run = mlflow.active_run()
    assert run is not None
    name = f"{version.name}-{version.version}.sig"
    with tempfile.TemporaryDirectory() as work:
        signature = Path(work) / name
        _sign(folder, signature, private_key)
        mlflow.log_artifact(str(signature), SIGNATURE)
    uri = f"runs:/{run.info.run_id}/{SIGNATURE}/{name}"
    MlflowClient().set_model_version_tag(version.name, str(version.version), SIGNATURE, uri)


def _sign(folder: Path, signature: Path, private_key: Path) -> None:
    """Write a signature of every file in *folder*, made with *private_key*, to the file *signature*."""
    from model_signing import hashing, signing  # slow to import, and rarely needed

    # bytes, because the library passes it on to `cryptography`, although it is annotated as str.
    password: Any = os.environ[PASSWORD].encode() if os.environ.get(PASSWORD) else None
    ignored = hashing.Config().set_ignored_paths(paths=[ADDED], ignore_git_paths=False)
    try:
        signer = signing.Config().use_elliptic_key_signer(private_key=private_key, password=password)
        signer.set_hashing_config(ignored).sign(folder, signature)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        # Without the library's message, which might contain parts of the key.
        fact = f"register.sign_key={private_key} cannot sign ({type(error).__name__})"
        msg = f"{fact}: give an elliptic-curve key in PEM (P-256, P-384, P-521), its password in {PASSWORD}"
        raise StepError(msg) from None


def signed_files(signature: Path) -> dict[str, str]:
    """Return the sha256 of each file that the file *signature* is about, by path. It verifies nothing."""
    envelope = json.loads(signature.read_text(encoding="utf-8"))["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    return {each["name"]: each["digest"] for each in statement["predicate"]["resources"]}


def verify_version(version: ModelVersion, public_key: Path) -> int:
    """Verify the signature of *version* with *public_key*; return the number of its files.

    Raises StepError if it is not signed, not signed by that key, or a file differs from what was signed.
    """
    from model_signing import verifying

    label, uri = f"version {version.version} of {version.name}", version.tags.get(SIGNATURE)
    if uri is None:
        msg = f"{label} is not signed: register it with -P register.sign_key=<private key>"
        raise StepError(msg)
    with tempfile.TemporaryDirectory() as work:
        model = Path(work) / "model"
        try:
            signature = mlflow.artifacts.download_artifacts(uri, dst_path=work)
            mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}", dst_path=str(model))
        except (MlflowException, OSError) as error:
            msg = f"{label} or its signature {uri} cannot be read: {first_line(error)}"
            raise StepError(msg) from error
        try:
            verifying.Config().use_elliptic_key_verifier(public_key=public_key).verify(model, Path(signature))
        except Exception as error:  # the library raises many kinds of errors; each means that verification failed
            msg = f"{label} is not what the owner of {public_key} signed: {first_line(error)[:500]}"
            raise StepError(msg) from error
        return sum(path.name != ADDED for path in files_below(model))
