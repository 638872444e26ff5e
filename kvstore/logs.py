"""Logging of a server process: one line per change of state, to stderr.

JSON unless stderr is a terminal. The keys are those of etcd's logs (level, ts, logger, msg), so that log
shippers need no new rules. Libraries that use `logging` come out of the same door.
"""

import logging
import sys
from typing import Any, Final

import structlog

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
FIRST_KEYS: Final = ("level", "ts", "logger", "msg")


def set_up(level: str, style: str) -> None:
    """level: as etcd names them. style: auto, json or console."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp" if console else "ts"),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    render: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if console:
        render.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        render += [
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("msg"),
            _first_keys_first,
            structlog.processors.JSONRenderer(sort_keys=False),
        ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=render))
    root = logging.getLogger()
    root.handlers = [handler]
    # What libraries say at debug level is what passes through them: hpack prints every header, tokens too.
    root.setLevel(max(LEVELS[level], logging.INFO))
    for ours in ("kvstore", "raft"):
        logging.getLogger(ours).setLevel(LEVELS[level])
    for noisy in ("asyncio", "grpc", "grpc._cython.cygrpc", "raft.transport"):
        logging.getLogger(noisy).setLevel(max(LEVELS[level], logging.WARNING))


def _first_keys_first(_: object, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """For eyes: when, how bad and what, before the details."""
    return {key: event[key] for key in FIRST_KEYS if key in event} | event


def flush() -> None:
    """Before the process ends without asking anybody."""
    for handler in logging.getLogger().handlers:
        handler.flush()
