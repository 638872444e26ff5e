"""The little language of `kvctl txn`, as etcdctl reads it.

    value("job") = "open"       compares; all must hold
    mod("job") > "0"

    put job "in work"           what to do then
    get job

    get job                     what to do else

A blank line ends each of the three parts; so does the end of the input. A compare is target(KEY) OP VALUE with KEY
and VALUE in double quotes; targets are value, version, create, mod and lease, operators = != < >. An operation is a
command line of put, get or del with that verb's options, its words optionally quoted: "..." knows escapes, '...' none.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NoReturn

from kvstore.client import txn
from kvstore.kvctl.commands.get import ORDERS, SORT_BY
from kvstore.kvctl.failures import Failure, usage
from kvstore.kvctl.ranges import key_and_range
from kvstore.pb import rpc_pb2

_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_COMPARE: Final = re.compile(rf"(\w+)\((?P<key>{_QUOTED})\)\s*(?P<op>!=|=|<|>)\s*(?P<value>{_QUOTED})")
_WORD: Final = re.compile(rf"\s*(?:(?P<double>{_QUOTED})|'(?P<single>[^']*)'|(?P<plain>[^\s\"']\S*))(?=\s|$)")
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))")
_LETTERS: Final = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34, "'": 39}
_OPERATORS: Final = {"=": "equals", "!=": "not_equals", "<": "less", ">": "greater"}


def parse(lines: Iterable[str]) -> tuple[list[rpc_pb2.Compare], list[txn.Request], list[txn.Request]]:
    """The three parts, for Client.txn."""
    source = iter(lines)
    compares = [compare(line) for line in part(source)]
    return compares, [operation(line) for line in part(source)], [operation(line) for line in part(source)]


def part(lines: Iterator[str]) -> Iterator[str]:
    """Up to the next blank line, which it takes, or the end."""
    for line in lines:
        stripped = line.strip()
        if not stripped:
            return
        yield stripped


def compare(line: str) -> rpc_pb2.Compare:
    match = _COMPARE.fullmatch(line)
    if match is None:
        raise Failure(f'malformed comparison: {line}; want for example value("key") = "text" or mod("key") > "0"')
    target, key, value = match[1], unquote(match["key"]), unquote(match["value"])
    method = _OPERATORS[match["op"]]
    if target in ("val", "value"):
        return _call(txn.value(key), method, value)
    numbers: dict[str, Callable[[bytes], object]] = {
        "ver": txn.version,
        "version": txn.version,
        "c": txn.create_revision,
        "create": txn.create_revision,
        "m": txn.mod_revision,
        "mod": txn.mod_revision,
        "lease": txn.lease,
    }
    if target not in numbers:
        raise Failure(f"malformed comparison: {line}; {target} is none of value, version, create, mod, lease")
    try:
        number = int(value, 16 if target == "lease" else 10)
    except ValueError:
        raise Failure(f"malformed comparison: {line}; {target} is compared with a number in quotes") from None
    return _call(numbers[target](key), method, number)


def _call(target: object, method: str, operand: bytes | int) -> rpc_pb2.Compare:
    result = getattr(target, method)(operand)
    assert isinstance(result, rpc_pb2.Compare)
    return result


def operation(line: str) -> txn.Request:
    verb, *arguments = words(line)
    if verb not in _PARSERS:
        raise Failure(f"invalid txn request: {line}; want put, get or del")
    options = _PARSERS[verb]().parse_args(arguments)
    if verb == "put":
        return txn.put(
            _bytes(options.key),
            _bytes(options.value),
            lease=int(options.lease, 16),
            prev_kv=options.prev_kv,
            ignore_value=options.ignore_value,
            ignore_lease=options.ignore_lease,
        )
    first, end = key_and_range(verb, options.key, options.range_end, None, options.prefix, options.from_key)
    if verb == "del":
        return txn.delete(first, end, prev_kv=options.prev_kv)
    if options.sort_by.lower() not in SORT_BY or options.order.lower() not in ORDERS:
        raise usage(f"invalid txn request: {line}; see --sort-by and --order in `kvctl get --help`")
    return txn.get(
        first,
        end,
        revision=options.rev,
        limit=options.limit,
        sort_by=SORT_BY[options.sort_by.lower()],
        order=ORDERS[options.order.lower()],
        keys_only=options.keys_only,
        count_only=options.count_only,
        serializable=options.consistency == "s",
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Failure(f"invalid txn request: {self.prog}: {message}; see `kvctl {self.prog} --help`")


def _put_parser() -> _Parser:
    parser = _Parser("put", add_help=False)
    parser.add_argument("key")
    parser.add_argument("value", nargs="?", default="")
    parser.add_argument("--lease", default="0")
    for flag in ("--prev-kv", "--ignore-value", "--ignore-lease"):
        parser.add_argument(flag, action="store_true")
    return parser


def _range_parser(verb: str) -> _Parser:
    parser = _Parser(verb, add_help=False)
    parser.add_argument("key")
    parser.add_argument("range_end", nargs="?")
    for flag in ("--prefix", "--from-key"):
        parser.add_argument(flag, action="store_true")
    return parser


def _get_parser() -> _Parser:
    parser = _range_parser("get")
    for flag in ("--keys-only", "--count-only"):
        parser.add_argument(flag, action="store_true")
    for name in ("--rev", "--limit"):
        parser.add_argument(name, type=int, default=0)
    for name in ("--sort-by", "--order"):
        parser.add_argument(name, default="")
    parser.add_argument("--consistency", choices=("l", "s"), default="l")
    return parser


def _del_parser() -> _Parser:
    parser = _range_parser("del")
    parser.add_argument("--prev-kv", action="store_true")
    return parser


_PARSERS: Final[dict[str, Callable[[], _Parser]]] = {"put": _put_parser, "get": _get_parser, "del": _del_parser}


def words(line: str) -> list[str]:
    """Split at blanks outside of quotes. Bytes that are no UTF-8 come surrogate-escaped, as in arguments."""
    found, position = [], 0
    while position < len(line):
        match = _WORD.match(line, position)
        if match is None:
            raise Failure(f"invalid txn request: {line}; a quote is not closed, or text follows one without a blank")
        if match["double"] is not None:
            found.append(unquote(match["double"]).decode(errors="surrogateescape"))
        else:
            found.append(match["single"] if match["single"] is not None else match["plain"])
        position = match.end()
    return found


def unquote(text: str) -> bytes:
    """What "..." with Go's escapes stands for."""
    result, position = b"", 1
    for match in _ESCAPE.finditer(text, 1, len(text) - 1):
        result += _bytes(text[position : match.start()])
        byte, short, long, octal, letter = match.groups()
        if byte or octal:
            result += bytes((int(byte, 16) if byte else int(octal, 8) & 0xFF,))
        elif short or long:
            try:
                result += chr(int(short or long, 16)).encode()
            except (ValueError, OverflowError):
                raise Failure(f"{text}: {match[0]} is no character") from None
        elif letter in _LETTERS:
            result += bytes((_LETTERS[letter],))
        else:
            raise Failure(f"{text}: \\{letter} is no escape; write \\\\ for a backslash")
        position = match.end()
    return result + _bytes(text[position:-1])


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
