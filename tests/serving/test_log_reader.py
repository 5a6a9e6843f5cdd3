import json

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet.serving.event_log import EventLog
from infnet.serving.events import Event
from infnet.serving.log_reader import EVENT_SCHEMA, parse_lines, read_events, read_own_events
from infnet.serving.segments import Segment, last_stamp, segments


def an_event(event_id, **changes):
    given = {"request_id": "r", "item_id": "7", "type": "click", "time_ms": 5, "received_ms": 0}
    return Event(event_id=event_id, **(given | changes))


def line(number):
    return json.dumps({"event_id": f"é{number}", "value": number, "extra": [1, {"a": None}]}).encode()


SCHEMA = {"event_id": pl.String, "value": pl.Float64}


def test_reading_on_gives_each_event_once_whenever_it_is_done(tmp_path):
    logs, position, found = [EventLog(tmp_path, segment_mb=1) for _ in range(2)], None, []
    for number in range(40):
        logs[number % 2].append_events([an_event(f"{number}", item_id="x" * 100_000), an_event(f"{number}b")])
        if number == 25:
            logs[0].close()
            logs[0] = EventLog(tmp_path, segment_mb=1)
        if number % 7 == 0:
            events, position, _ = read_events(tmp_path, position)
            found += events["event_id"].to_list()
    events, position, _ = read_events(tmp_path, position)
    found += events["event_id"].to_list()
    assert sorted(found) == sorted(read_events(tmp_path).events["event_id"])
    assert len(found) == len(set(found)) == 80
    assert len(position) == 2
    assert read_events(tmp_path, position).events.is_empty()


def test_events_are_read_with_every_field_as_written(tmp_path):
    log = EventLog(tmp_path)
    written = [an_event("a", value=2.5, user_id="ü"), an_event("b", item_id='"\n,', time_ms=-(2**62))]
    log.append_events(written)
    events = read_events(tmp_path).events
    assert events.schema == EVENT_SCHEMA
    stamp = events["received_ms"][0]
    own, position = read_own_events(log.directory, log.writer, {})
    assert own == [Event(**(row | {"received_ms": stamp})) for row in events.to_dicts()]
    assert [event.item_id for event in own] == ["7", '"\n,']
    assert position == log.position()
    assert read_own_events(log.directory, log.writer, position) == ([], position)


def test_own_events_are_those_of_one_writer(tmp_path):
    mine, other = EventLog(tmp_path, writer="w"), EventLog(tmp_path, writer="w-1")
    for number in range(3):
        mine.append_events([an_event(f"m{number}")])
        other.append_events([an_event(f"o{number}")])
    assert [event.event_id for event in read_own_events(mine.directory, mine.writer, {})[0]] == ["m0", "m1", "m2"]
    both = read_events(tmp_path).position
    mine.append_events([an_event("m3")])
    assert [event.event_id for event in read_own_events(mine.directory, mine.writer, both)[0]] == ["m3"]


def test_a_line_that_is_being_written_is_read_when_it_is_complete(tmp_path):
    log = EventLog(tmp_path, writer="w")
    log.append_events([an_event("a")])
    (segment,) = segments(tmp_path / "events")
    whole = segment.path.read_bytes()
    segment.path.write_bytes(whole + whole[:20])
    events, position, damaged = read_events(tmp_path)
    assert (events["event_id"].to_list(), damaged) == (["a"], 0)
    segment.path.write_bytes(whole + whole)
    assert read_events(tmp_path, position).events["event_id"].to_list() == ["a"]


@settings(max_examples=60)
@given(st.lists(st.none() | st.binary(max_size=12), max_size=12))
def test_a_damaged_line_costs_no_other(given):
    """None stands for a sound line."""
    lines = [line(i) if junk is None else junk.replace(b"\n", b"") for i, junk in enumerate(given)]
    frame = parse_lines(b"".join(each + b"\n" for each in lines), SCHEMA)
    assert frame["is_damaged"].to_list() == [junk is not None for junk in given]
    sound = frame.filter(~pl.col("is_damaged"))
    wanted = [(f"é{i}", float(i)) for i, junk in enumerate(given) if junk is None]
    assert sound.select("event_id", "value").rows() == wanted
    ends = [sum(len(each) + 1 for each in lines[: i + 1]) for i in range(len(lines))]
    assert frame["end"].to_list() == ends
    assert frame["begin"].to_list() == [0, *ends][: len(ends)]


@settings(max_examples=60)
@given(st.integers(0, 400), st.integers(0, 255))
def test_a_flipped_byte_costs_one_line_at_most(at, byte):
    data = bytearray(b"".join(line(i) + b"\n" for i in range(8)))
    at %= len(data)
    hit = data[:at].count(b"\n")
    is_join = data[at] == ord("\n") != byte
    data[at] = byte
    found = set(parse_lines(bytes(data), SCHEMA).filter(~pl.col("is_damaged"))["event_id"])
    assert found >= {f"é{i}" for i in range(8)} - {f"é{hit}", f"é{hit + is_join}"}


def test_damaged_lines_are_counted_once(tmp_path):
    log = EventLog(tmp_path, writer="w")
    for number in range(5):
        log.append_events([an_event(str(number))])
    (segment,) = segments(tmp_path / "events")
    lines = segment.path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"time_ms"', b'"tome_ms"')
    lines[3] = lines[3].replace(b"{", b"\x00")
    segment.path.write_bytes(b"".join(lines))
    events, position, damaged = read_events(tmp_path)
    assert (events["event_id"].to_list(), damaged) == (["0", "2", "4"], 2)
    assert read_events(tmp_path, position).damaged == 0
    assert [event.event_id for event in read_own_events(log.directory, log.writer, {})[0]] == ["0", "2", "4"]


def test_the_time_of_the_last_line_is_found_however_long_the_lines_are(tmp_path):
    path = Segment.named(tmp_path, "w", 1).path
    sound, long = b'{"received_ms":5}\n', b'{"received_ms":7,"x":"%b"}\n' % (b"y" * 300_000)
    for data, wanted in (
        (b"", None),
        (b"nothing", None),
        (sound, 5),
        (sound + long, 7),
        (long + sound, 5),
        (sound + long + b"x" * 200_000 + b"\n", 7),
        (sound + long[:-1], 5),
        (long * 3 + b'{"received_ms":"x"}\n{"received', 7),
    ):
        path.write_bytes(data)
        assert last_stamp(path) == wanted
