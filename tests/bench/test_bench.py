"""The benchmarks run and tell what they measured. How fast it is, no test decides."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from command import Ran, run
from headway.bench.decode import DecodeFigures
from headway.bench.scaling import ScalingFigures

SHORT = ("--model", "demo", "--device", "cpu", "--prompt-tokens", "4", "--tokens", "4")
DECODE = {field.name for field in fields(DecodeFigures)}


def last_line(ran: Ran) -> Any:
    assert (ran.code, ran.err) == (0, "")
    return json.loads(ran.out.splitlines()[-1])


def test_latency_tells_of_one_stream_beside_transformers(tmp_path: Path) -> None:
    ran = run("bench", "latency", *SHORT, "--repeats", "1", cwd=tmp_path)
    figures = last_line(ran)
    assert figures.keys() == DECODE | {"ms_per_token_with_prompt", "transformers_ms_per_token"}
    assert (figures["num_streams"], figures["num_prompt_tokens"], figures["num_tokens"]) == (1, 4, 4)
    assert (figures["device"], figures["dtype"]) == ("cpu", "float32")
    for name in ("ttft_ms", "ms_per_token", "outside_ms", "transformers_ms_per_token"):
        assert figures[name] > 0
    for row in ("Latency of demo", "first token, ms", "speed relative to transformers"):
        assert row in ran.out


def test_throughput_tells_of_each_number_of_streams_and_writes_a_file(tmp_path: Path) -> None:
    words = ("--streams", "1", "--streams", "3", "--json", "figures.json")
    ran = run("bench", "throughput", *SHORT, *words, cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    runs = json.loads((tmp_path / "figures.json").read_text())
    assert [figures.keys() == DECODE for figures in runs] == [True, True]
    assert [figures["num_streams"] for figures in runs] == [1, 3]
    assert "Throughput of demo" in ran.out
    assert "tokens/s" in ran.out


def test_tp_tells_of_round_trips_and_of_decoding_on_ray(tmp_path: Path) -> None:
    words = ("--max-tp", "1", "--streams", "2", "--trips", "5")
    ran = run("bench", "tp", *SHORT, *words, cwd=tmp_path)
    figures = last_line(ran)
    ways = {way.partition(",")[0] for way in figures["round_trips"]}
    assert ways == {"step channel", "ray call", "ray compiled graph"}
    for times in figures["round_trips"].values():
        assert 0 < times["p50_us"] <= times["p99_us"]
    assert [one["tp"] for one in figures["scaling"]] == [1]
    assert figures["scaling"][0].keys() == {field.name for field in fields(ScalingFigures)}
    for title in ("Round trips of 256 bytes", "Tensor parallelism of demo"):
        assert title in ran.out
