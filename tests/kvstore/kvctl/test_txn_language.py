"""The language of `kvctl txn`: compares and operations as etcdctl takes them."""

import pytest

from kvstore.client import txn
from kvstore.kvctl.failures import Failure
from kvstore.kvctl.txn_language import compare, operation, parse, unquote, words


def test_three_parts_each_ended_by_a_blank_line_or_the_end() -> None:
    text = 'value("a") = "1"\n\nput a 2\nget a\n\ndel a --prefix --prev-kv'
    when, then, otherwise = parse(text.splitlines())
    assert when == [txn.value("a").equals("1")]
    assert then == [txn.put("a", "2"), txn.get("a")]
    assert otherwise == [txn.delete("a", prefix=True, prev_kv=True)]
    assert parse([]) == ([], [], [])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('val("k") != "x y"', txn.value("k").not_equals("x y")),
        ('ver("k") > "3"', txn.version("k").greater(3)),
        ('create("k") < "4"', txn.create_revision("k").less(4)),
        ('m("\\x00\\"") = "5"', txn.mod_revision(b'\0"').equals(5)),
        ('lease("k") = "1f"', txn.lease("k").equals(31)),
    ],
)
def test_compares(line: str, expected: object) -> None:
    assert compare(line) == expected


@pytest.mark.parametrize(
    "line", ["garbage", 'value("a") > 3', 'mod("a") > "x"', 'nope("a") = "1"', 'value("a") >= "1"']
)
def test_malformed_compares(line: str) -> None:
    with pytest.raises(Failure, match="malformed comparison"):
        compare(line)


@pytest.mark.parametrize(
    "line", ["foo k", "get", "get k --bogus", "get k --limit x", 'put k "open', "get k --sort-by z"]
)
def test_malformed_operations(line: str) -> None:
    with pytest.raises(Failure, match="invalid txn request"):
        operation(line)


def test_words_and_escapes() -> None:
    assert words('put "a\\tb" \'c "d"\' plain') == ["put", "a\tb", 'c "d"', "plain"]
    assert unquote(r'"\x41\u20ac\U0001F600\101\\\""') == 'A€😀A\\"'.encode()
    with pytest.raises(Failure, match="no escape"):
        unquote(r'"\q"')
