"""Where Orbax keeps a run's checkpoints: a folder, or a URL that it writes to itself, all hosts their parts."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from mmdit_jax.errors import UserError
from mmdit_jax.remote import Remote


def orbax_path(folder: Path, remote: Remote | None) -> Any:
    """What Orbax is given: ``folder``, or the URL it stands for.

    Raises:
      UserError: a URL that Orbax can't write to.
    """
    if remote is None:
        return folder
    from etils import epath

    if remote.scheme == "s3":
        _speak_s3()
    elif remote.scheme != "gs":
        raise UserError(f"root={remote.url!r}: checkpoints go to s3:// and gs:// alone")
    _ = remote.files  # is the package there?
    return epath.Path(remote.url)


def orbax_context(folder: Any, remote: Remote | None) -> contextlib.AbstractContextManager[Any]:
    """Around everything that Orbax does in ``folder``, which ``orbax_path`` gave.

    Two folders that are written at a time wait at barriers of their own. At an object store a checkpoint is finished by
    a file, not by a name; Orbax knows that of gs:// by itself.
    """
    context = ocp.Context()
    name = f"{folder.parent.name}/{folder.name}"  # hosts may have mounted the root at different places
    context.multiprocessing.barrier_sync_key_prefix = hashlib.sha256(name.encode()).hexdigest()[:8]
    if remote is not None and remote.scheme == "s3":
        context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
    return context


def ask_no_preemption(checkpointer: ocp.training.Checkpointer) -> None:
    """Keep Orbax from asking JAX whether there was a SIGTERM, for its own statistics.

    It asks with the step that was saved, from a thread, after the loop has asked with a later one; JAX takes that for
    how far this process is, and may have all of them stop at a step that it has passed.

    Raises:
      UserError: a release of Orbax in which this can't be done.
    """
    manager = vars(checkpointer).get("_manager")
    if not hasattr(manager, "reached_preemption"):
        raise UserError("orbax-checkpoint: this release can't be kept from asking for preemption; 0.12.8 can")
    manager.reached_preemption = lambda step: False


@functools.cache
def _speak_s3() -> None:
    """Have Orbax's arrays lie on S3: 0.12.8 takes it for a local path, and would write into ./s3:/ without a word.

    TensorStore has a driver for S3, that knows keys from the environment but no endpoint.
    """
    import fsspec.config
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    names = ((tensorstore_utils, "_normalize_path"), (tensorstore_utils, "_use_gcs_driver"))
    for module, name in (*names, (gcs_utils, "get_kvstore_for_gcs")):
        if name not in vars(module):
            raise UserError("root='s3://…': this release of orbax-checkpoint can't be taught S3; 0.12.8 can")
    fsspec.config.conf.setdefault("s3", {})["use_listings_cache"] = False
    normalize, known, of_gcs = (
        tensorstore_utils._normalize_path,
        tensorstore_utils._use_gcs_driver,
        gcs_utils.get_kvstore_for_gcs,
    )

    def path(text: str) -> str:
        return "s3://" + os.path.normpath(text[5:]) if text.startswith("s3://") else normalize(text)

    def store(text: str) -> dict[str, Any]:
        if not text.startswith("s3://"):
            return of_gcs(text)
        bucket, _, key = text[5:].partition("/")
        spec = {"driver": "s3", "bucket": bucket, "path": f"{key}/"}
        for variable, field in (("AWS_ENDPOINT_URL", "endpoint"), ("AWS_DEFAULT_REGION", "aws_region")):
            if os.environ.get(variable):
                spec[field] = os.environ[variable]
        return spec

    tensorstore_utils._normalize_path = path
    tensorstore_utils._use_gcs_driver = lambda text: text.startswith("s3://") or known(text)
    gcs_utils.get_kvstore_for_gcs = store
