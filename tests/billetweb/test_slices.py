"""A large array cut into small ones: the same rows, whatever they hold and however the bytes arrive."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syncd.billetweb import slices as slicing
from syncd.billetweb.slices import slices
from syncd.errors import DecodeError

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
    found = [json.loads(piece) for piece in slices(pieces(body, size), about)]
    assert [row for piece in found for row in piece] == rows
    assert all(found)


@given(arrays, st.integers(1, 40), st.integers(1, 100), st.data())
def test_truncated_array_taken_for_a_whole_one(
    rows: list[object], size: int, about: int, data: st.DataObject
) -> None:
    """Every beginning of an answer but the answer itself is refused."""
    body = dump(rows)
    end = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(DecodeError):
        list(slices(pieces(body[:end], size), about))


@given(arrays, st.binary(min_size=1, max_size=3), st.integers(1, 100), st.data())
def test_broken_array_taken_for_a_whole_one(
    rows: list[object], noise: bytes, about: int, data: st.DataObject
) -> None:
    """With bytes put in anywhere it is refused just where a reader of the whole refuses it."""
    body = dump(rows)
    at = data.draw(st.integers(0, len(body)))
    body = body[:at] + noise + body[at:]
    try:
        whole = slicing._ROWS.decode(body) if body.decode() else []
    except ValueError:
        with pytest.raises(DecodeError):
            list(slices(pieces(body, 7), about))
        return
    found = [row for piece in slices(pieces(body, 7), about) for row in slicing._ROWS.decode(piece)]
    assert list(map(bytes, found)) == list(map(bytes, whole))


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
        list(slices([body], about))
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
    for piece in slices(chunks(), 4000):
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
        list(slices(endless(), 100))
