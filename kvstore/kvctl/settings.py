"""Global options: from the command line, else the environment, else the config file, else the default."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from kvstore.kvctl.failures import usage

ENVIRONMENT_PREFIXES: Final = ("KVCTL_", "ETCDCTL_")  # KVCTL_ENDPOINTS before ETCDCTL_ENDPOINTS
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class WriteOut(StrEnum):
    SIMPLE = "simple"
    JSON = "json"
    TABLE = "table"
    FIELDS = "fields"


@dataclass(frozen=True, slots=True)
class Settings:
    endpoints: tuple[str, ...]
    dial_timeout: float  # seconds
    command_timeout: float  # seconds
    write_out: WriteOut
    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    insecure_skip_tls_verify: bool = False
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def asks_for_tls(self) -> bool:
        return self.cacert is not None or self.cert is not None or self.insecure_skip_tls_verify


DEFAULTS: Final = {
    "endpoints": "127.0.0.1:2379",
    "dial_timeout": "2s",
    "command_timeout": "5s",
    "write_out": "simple",
    "cacert": "",
    "cert": "",
    "key": "",
    "insecure_skip_tls_verify": "false",
    "user": "",
    "password": "",
}
assert set(DEFAULTS) == {field.name for field in fields(Settings)}


def seconds(text: str) -> float:
    """ "5", "5s", "500ms", "1m30s" -> seconds. Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d*)?)(ms|s|m|h)", text)
    if "".join(number + unit for number, unit in parts) == text and parts:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    return float(text)


def resolve(given: Mapping[str, str | None], config: str | None, environment: Mapping[str, str]) -> Settings:
    """`given`: what the command line said, by field name."""
    file = _read_config(config or environment.get("KVCTL_CONFIG"), environment)
    chosen = {
        name: given.get(name) or _from(environment, name) or file.get(name) or DEFAULTS[name] for name in DEFAULTS
    }
    endpoints = tuple(filter(None, (part.strip() for part in chosen["endpoints"].split(","))))
    if not endpoints:
        raise usage("--endpoints names no endpoint; want host:port[,host:port...]")
    user, password = _user(chosen["user"], chosen["password"])
    files = {name: _file(name, chosen[name]) for name in ("cacert", "cert", "key")}
    if (files["cert"] is None) != (files["key"] is None):
        raise usage("--cert and --key belong together; give both")
    return Settings(
        endpoints,
        _duration("dial-timeout", chosen["dial_timeout"]),
        _duration("command-timeout", chosen["command_timeout"]),
        _write_out(chosen["write_out"]),
        **files,
        insecure_skip_tls_verify=flag("insecure-skip-tls-verify", chosen["insecure_skip_tls_verify"]),
        user=user,
        password=password,
    )


def _from(environment: Mapping[str, str], name: str) -> str | None:
    return next(filter(None, (environment.get(prefix + name.upper()) for prefix in ENVIRONMENT_PREFIXES)), None)


def _duration(name: str, text: str) -> float:
    try:
        value = seconds(text)
    except ValueError:
        raise usage(f"--{name}: {text!r} is no duration; want for example 5s or 500ms") from None
    if not 0 < value < float("inf"):
        raise usage(f"--{name}: {text!r} is not above 0")
    return value


def _user(user: str, password: str) -> tuple[str, str]:
    """--user may hold the password too, behind a colon; --password then leaves the colon to the name (etcdctl)."""
    if password and not user:
        raise usage("--password needs --user")
    if not password:
        user, _, password = user.partition(":")
    return user, password


def _file(name: str, text: str) -> Path | None:
    if not text:
        return None
    try:
        Path(text).read_bytes()
    except OSError as error:
        raise usage(f"--{name}: {text} cannot be read: {error.strerror}") from None
    return Path(text)


def flag(name: str, text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise usage(f"--{name}: {text!r} is neither true nor false")
    return text.lower() in ("true", "1")


def _write_out(text: str) -> WriteOut:
    try:
        return WriteOut(text)
    except ValueError:
        raise usage(f"-w {text}: no such format; choose simple, json, table or fields") from None


def _read_config(path: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The file's keys are the options' names: endpoints, dial-timeout, cacert and so on."""
    home = environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    file = Path(path) if path else Path(home, "kvctl.yaml")
    if not file.exists():
        if path:
            raise usage(f"{file}: no such config file; see --config and KVCTL_CONFIG")
        return {}
    import yaml

    try:
        content: Any = yaml.safe_load(file.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise usage(f"{file}: cannot read it: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise usage(f"{file}: want lines like `endpoints: 127.0.0.1:2379`")
    config = {str(name).replace("-", "_"): value for name, value in content.items()}
    if unknown := set(config) - set(DEFAULTS):
        raise usage(f"{file}: unknown key {min(unknown)!r}; known are {', '.join(DEFAULTS).replace('_', '-')}")
    return {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in config.items()
    }
