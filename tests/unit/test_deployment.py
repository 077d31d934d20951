"""Replicas that start together: none sizes its pools before all are loaded, and each knows its neighbours."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from headway.cli import deployment
from headway.core.progress import Report, silent


class FakeGang:
    """after: whose loading it waits for, so that the order is known."""

    def __init__(
        self, name: str, hosts: Sequence[str], told: list[Any], after: "FakeGang | None" = None
    ) -> None:
        self.name = name
        self.hosts = hosts
        self.told = told
        self.after = after
        self.loaded = threading.Event()

    def load(self, report: Report) -> Sequence[str]:
        assert self.after is None or self.after.loaded.wait(10)
        self.told.append(f"{self.name} loaded")
        self.loaded.set()
        return self.hosts

    def begin(self, ranks_on_host: Mapping[str, int], report: Report) -> str:
        self.told.append(dict(ranks_on_host))
        return self.name


def test_ranks_of_every_replica_on_a_host_share_its_memory_once_all_are_loaded() -> None:
    async def start() -> list[Any]:
        told: list[Any] = []
        quick = FakeGang("b", ("h1", "h2"), told)
        slow = FakeGang("a", ("h1", "h1"), told, after=quick)
        assert await deployment._start([slow, quick], silent) == ["a", "b"]  # type: ignore[list-item]
        return told

    assert asyncio.run(start()) == ["b loaded", "a loaded", *[{"h1": 3, "h2": 1}] * 2]


def test_a_replica_that_cannot_load_keeps_all_from_beginning() -> None:
    class Broken(FakeGang):
        def load(self, report: Report) -> Sequence[str]:
            raise OSError("no")

    async def start() -> list[Any]:
        told: list[Any] = []
        sound = FakeGang("a", ("h1",), told)
        with pytest.raises(OSError, match="no"):
            await deployment._start([sound, Broken("b", (), told)], silent)  # type: ignore[list-item]
        return told

    assert asyncio.run(start()) in ([], ["a loaded"])
