"""Durations, sizes and quoting as kvctl reads and prints them."""

import pytest

from kvstore.kvctl.formats import duration, quote, size
from kvstore.kvctl.settings import resolve, seconds


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (9, "9 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (20480, "20 kB"),
        (1234567, "1.2 MB"),
        (10**9, "1.0 GB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.002312284, "2.312284ms"), (1.5, "1.5s"), (0.00002, "20µs"), (0, "0ns"), (1, "1s")]
)
def test_duration(value: float, text: str) -> None:
    assert duration(value) == text


def test_quote() -> None:
    assert quote(b'v\x00\x01\xff"\\\n\x7f') == r'"v\x00\x01\xff\"\\\n\u007f"'
    assert quote("é€\u00a0😀\u200b\U000e0001".encode()) == r'"é€\u00a0😀\u200b\U000e0001"'


@pytest.mark.parametrize(("text", "value"), [("5", 5), ("5s", 5), ("500ms", 0.5), ("1m30s", 90), ("1.5s", 1.5)])
def test_seconds(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "s", "5x", "5s3", "1 s"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        seconds(text)


def test_the_command_line_wins_over_the_environment_over_the_file(tmp_path: object) -> None:
    from pathlib import Path

    file = Path(str(tmp_path), "kvctl.yaml")
    file.write_text("endpoints: [a:1, b:2]\nwrite-out: json\ncommand-timeout: 9\n")
    environment = {"KVCTL_CONFIG": str(file)}
    settings = resolve({}, None, environment)
    assert (settings.endpoints, settings.write_out, settings.command_timeout) == (("a:1", "b:2"), "json", 9.0)
    environment["ETCDCTL_ENDPOINTS"] = "c:3"
    assert resolve({}, None, environment).endpoints == ("c:3",)
    environment["KVCTL_ENDPOINTS"] = "d:4, e:5"
    assert resolve({}, None, environment).endpoints == ("d:4", "e:5")
    assert resolve({"endpoints": "f:6"}, None, environment).endpoints == ("f:6",)
