"""A large array cut into small ones: the same rows, whatever they hold and however the bytes arrive."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syncd.billetweb import answers
from syncd.billetweb.slices import ROW_MAX_BYTES, slices
from syncd.errors import DecodeError, TooLargeError

MOST = 100_000
FALSE_BORDERS = '}, {"},{"a":[},\\"},{'
texts = st.text('},{"[]:\\ \n\té🥖x') | st.just(FALSE_BORDERS)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
arrays = st.lists(st.dictionaries(texts, values, max_size=4) | values, max_size=12)


NESTED = [{"a": [{"b": 1}, {"c": 2}, {"d": 3}, {"e": [{}, {}, {}, {}]}]}, {"f": 2}, {}]


def dump(rows: object, *, pretty: bool = False, ascii_only: bool = True) -> bytes:
    return json.dumps(rows, indent=2 if pretty else None, ensure_ascii=ascii_only).encode()


def pieces(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


styles = st.fixed_dictionaries({"pretty": st.booleans(), "ascii_only": st.booleans()})


@given(arrays, styles, st.integers(1, 300), st.integers(1, 300), st.sampled_from([b"", b"\xef\xbb\xbf \n"]))
@example(NESTED, {}, 3, 20, b"")
def test_row_lost_or_broken(
    rows: list[object], style: dict[str, bool], size: int, about: int, head: bytes
) -> None:
    """Whatever rows, however written and cut on the way, arrive as they are and in order."""
    body = head + dump(rows, **style) + b"\n"
    found: list[object] = []
    for before, piece in slices(pieces(body, size), about=about, most=MOST):
        assert before == len(found)
        found += json.loads(piece)
        assert before < len(found)
    assert found == rows


@given(arrays, st.integers(1, 40), st.integers(1, 100), st.data())
def test_truncated_array_taken_for_a_whole_one(
    rows: list[object], size: int, about: int, data: st.DataObject
) -> None:
    """Every beginning of an answer but the answer itself is refused."""
    body = dump(rows)
    end = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(DecodeError):
        list(slices(pieces(body[:end], size), about=about, most=MOST))


@given(arrays, st.binary(min_size=1, max_size=3), st.integers(1, 100), st.data())
def test_broken_array_taken_for_a_whole_one(
    rows: list[object], noise: bytes, about: int, data: st.DataObject
) -> None:
    """With bytes put in anywhere it is refused just where a reader of the whole refuses it."""
    body = dump(rows)
    at = data.draw(st.integers(0, len(body)))
    body = body[:at] + noise + body[at:]
    try:
        whole = answers.rows(body)
    except DecodeError:
        with pytest.raises(DecodeError):
            list(slices(pieces(body, 7), about=about, most=MOST))
        return
    found = [
        row for _, piece in slices(pieces(body, 7), about=about, most=MOST) for row in answers.rows(piece)
    ]
    assert found == whole


NO_ARRAYS = [
    b"",
    b"\xef\xbb\xbf",
    b" \n",
    b"null",
    b'{"error": "unauthorized"}',
    b"<html>",
    b"[1] [2]",
    b"[1],",
]
NO_ARRAYS += [b'[{"a": 1}, {"b": 2},]', b'[{"a": 1}, {"b": "\xff"}]', b'[{"a": "\xff"}, {}]', b"[" * 100_000]


@pytest.mark.parametrize("body", NO_ARRAYS, ids=range(len(NO_ARRAYS)))
@pytest.mark.parametrize("about", [1, 1000])
def test_refusal_taken_for_rows(body: bytes, about: int) -> None:
    """What is no array, is none to its end or is no UTF-8 is refused, in words without any of its bytes."""
    with pytest.raises(DecodeError) as raised:
        list(slices([body], about=about, most=MOST))
    assert raised.value.__context__ is None
    assert "unauthorized" not in str(raised.value)


def test_large_answer_held_whole() -> None:
    """Slices are as small as asked for, though rows are full of borders; a large row makes its own larger."""
    nested = [{"id": index, "custom": [{"a": FALSE_BORDERS}] * 20} for index in range(300)]
    large = {"id": 300, "text": FALSE_BORDERS * 2000}
    body = dump([*nested, large, *nested])
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for chunk in pieces(body, 500):
            taken += len(chunk)
            yield chunk

    given_back, ahead, sizes = 0, 0, []
    for _, piece in slices(chunks(), about=4000, most=MOST):
        given_back += len(piece)
        ahead = max(ahead, taken - given_back)
        sizes.append(len(piece))
    assert ahead < 4 * len(dump(large))
    assert sum(size > 4002 for size in sizes) == 1
    assert len(sizes) > len(body) / 10_000


def test_garbage_read_to_its_end() -> None:
    """A body that goes wrong is given up there, not where it ends."""

    def endless() -> Iterator[bytes]:
        yield b'[{"a": 1}, {"b" 2}, '
        for _ in range(100):
            yield b'{"c": 3}, ' * 10
        pytest.fail("read on and on")

    with pytest.raises(DecodeError):
        list(slices(endless(), about=100, most=MOST))


@pytest.mark.parametrize("row", [{}, [], None, 1, "a", {"a": [{}, {}]}], ids=repr)
@pytest.mark.parametrize("about", [20, 1000])
def test_more_rows_than_are_bearable(row: object, about: int) -> None:
    """As many rows as are allowed are given; one more, and the slice that it is in is not."""
    found = [json.loads(piece) for _, piece in slices(pieces(dump([row] * 200), 100), about=about, most=200)]
    assert [each for piece in found for each in piece] == [row] * 200
    given_back: list[object] = []
    one_more = slices(pieces(dump([row] * 201), 100), about=about, most=200)
    with pytest.raises(TooLargeError, match="more than 200 rows"):
        given_back.extend(each for _, piece in one_more for each in json.loads(piece))
    assert len(given_back) <= 200


@pytest.mark.parametrize(
    "inside",
    [
        b'{"a": "' + b"x" * 1000,
        b"[" + b'["%b"],' % (b"x" * 85) * 20,
        b'{"b": {}, "c": [' + b'{"a":"%b"},' % (b"x" * 81) * 20,
        b" " * 1000,
        b"1" * 999,
    ],
    ids=["text", "lists", "objects", "blanks", "digits"],
)
def test_row_without_end_is_held(inside: bytes) -> None:
    """A row is given up once it is larger than any real one, however much of it is still to come."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        yield b'[{"id": "1"},' + inside[:-900]
        while taken < 10 * ROW_MAX_BYTES:
            taken += 9000
            yield inside[-900:] * 10

    with pytest.raises(TooLargeError, match="a row of Billetweb's answer is larger than 2 MiB"):
        list(slices(endless(), most=MOST))
    assert taken < 2 * ROW_MAX_BYTES
