"""Which Headway this is."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("headway")
except PackageNotFoundError:  # run from a source tree
    __version__ = "unknown"
