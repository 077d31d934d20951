"""The one place where the environment is read or written.

HEADWAY_TOKEN         token that clients must send, or that a client sends (`serve`, `generate`, `chat`)
CUDA_VISIBLE_DEVICES  which GPUs Ray hands out, in which order
GRPC_VERBOSITY        what gRPC itself says on stderr: nothing, unless it is set
HF_HOME               where hub downloads are kept (read by huggingface_hub itself)
RAY_AUTH_MODE, RAY_AUTH_TOKEN   Ray's token authentication; Headway turns it on unless it is set
RAY_IGNORE_UNHANDLED_ERRORS     set, so that Ray does not print what the other ranks of a failed start say
"""

import os
import secrets


def token() -> str | None:
    return os.environ.get("HEADWAY_TOKEN") or None


def quiet_grpc() -> None:
    """Before gRPC is imported: its C core says on stderr what is raised as errors anyway."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def gpu_index(gpu_id: str) -> int:
    """The index at which this process sees the GPU that Ray calls `gpu_id`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",").index(gpu_id) if visible else int(gpu_id)


def prepare_ray(*, local: bool) -> None:
    """Before Ray is imported: token authentication on, and for clusters of our own a token of our own.

    Such a token is never written to a file; a cluster that was started by others has its own already. It is
    drawn once a process, as Ray reads it once: a second cluster with another token could not be talked to.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if local:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CPU actors' variables alone


# What an actor's process is started with: every GPU of its host stays visible, since torch's symmetric
# memory refuses ranks that each see one GPU only ("overlapping devices"); a rank selects its own by index.
# NVLink multicast, which nothing here uses, is not set up beside it: peers' memory is shared only without.
ACTOR_VARIABLES = {
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}
