"""The relay's frame counter, on frames cut at every place."""

from tests.conformance.gate import FrameCounter


def frame(kind: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + b"\x00\x00\x00\x01" + payload


def test_counts_data_frames_wherever_the_stream_is_cut() -> None:
    # settings, its answer without payload, headers, two messages, an empty DATA that ends the stream
    stream = (
        frame(4, b"s" * 18) + frame(4, b"") + frame(1, b"h" * 30) + frame(0, b"one") + frame(0, b"two") + frame(0, b"")
    )
    for size in range(1, len(stream) + 1):
        counter = FrameCounter()
        for start in range(0, len(stream), size):
            counter.feed(stream[start : start + size])
        assert counter.count == 2, f"cut every {size} bytes"
