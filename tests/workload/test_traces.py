"""Recorded traces are read in the forms that people have, or refused in a line that mends them."""

import gzip

import numpy as np
import pytest

from deeprecsys.core import UserError, save_columns
from deeprecsys.workload import Workload, parse_arrivals, parse_sizes

ROWS = ([0.0, 0.5, 60.25], [3, 1, 2])
FORMS = {
    "plain.csv": "arrival_s,size\n0,3\n0.5,1\n60.25,2\n",
    "blanks.csv": "arrival_s, size\n0, 3\n0.5, 1\n60.25, 2\n",
    "quoted.csv": '\ufeff"Arrival_S" ,"SIZE"\r\n0,3\r\n0.5,1\r\n60.25,2\r\n',
    "semicolons.csv": "size;arrival_s\n3;0\n1;0.5\n2;60.25\n",
    "tabs.tsv": "arrival_s\tsize\n0\t3\n0.5\t1\n60.25\t2\n",
    "more.csv": "user,arrival_s,size\na,0,3\nb,0.5,1\nc,60.25,2\n",
    "zipped.csv.gz": "arrival_s,size\n0,3\n0.5,1\n60.25,2\n",
    "dates.csv": "arrival_s,size\n2026-11-26 13:00:00,3\n2026-11-26 13:00:00.5,1\n"
    "2026-11-26 13:01:00.25,2\n",
    "zulu.csv": "timestamp, size\n2026-11-26T13:00:00Z,3\n2026-11-26T13:00:00.500Z,1\n"
    "2026-11-26T13:01:00.250Z,2\n",
    "offset.csv": "time,size\n2026-11-26T13:00:00+01:00,3\n2026-11-26T12:00:00.5+00:00,1\n"
    "2026-11-26T13:01:00.250+01:00,2\n",
    "midnight.csv": "date,size\n2026-11-30T23:59:59,3\n2026-11-30T23:59:59.5,1\n"
    "2026-12-01T00:00:59.25,2\n",
    "lines.jsonl": '{"arrival_s": 0, "size": 3}\n{"size": 1, "arrival_s": 0.5, "user": "b"}\n'
    '{"arrival_s": 60.25, "size": 2}\n',
    "lines.ndjson.gz": '{"arrival_s": 0, "size": 3}\n{"arrival_s": 0.5, "size": 1}\n'
    '{"arrival_s": 60.25, "size": 2}\n',
    "dated.jsonl": '{"timestamp": "2026-11-26T13:00:00Z", "size": 3}\n'
    '{"timestamp": "2026-11-26T13:00:00.5Z", "size": 1}\n'
    '{"timestamp": "2026-11-26T13:01:00.25Z", "size": 2}\n',
}  # fmt: skip


def written(tmp_path, name, text):
    path, raw = tmp_path / name, text.encode()
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_a_trace_is_read_in_every_common_form(tmp_path, name):
    law = parse_arrivals(f"replay:{written(tmp_path, name, FORMS[name])}")
    assert (law.arrival_s.tolist(), law.size.tolist()) == ROWS


def test_a_table_of_date_times_is_read(tmp_path):
    times = np.datetime64("2026-11-26T13:00:00.000") + np.array([0, 500, 60_250])
    save_columns(tmp_path / "t.parquet", {"arrival_s": times, "size": np.array(ROWS[1])})
    law = parse_arrivals(f"replay:{tmp_path / 't.parquet'}")
    assert (law.arrival_s.tolist(), law.size.tolist()) == ROWS


THREE_COLUMNS = "0, 100, 100\n100, 400, 300\n400, 600, 200\n"


def test_loadgens_three_columns_are_sizes_in_order_at_a_rate_that_is_given(tmp_path):
    path = written(tmp_path, "dlrm_trace_of_aggregated_samples.txt", THREE_COLUMNS * 400)
    workload = Workload(arrivals=f"replay:{path}")
    schedule = workload.schedule(rate_qps=50)
    assert schedule.size.tolist() == [100, 300, 200] * 400
    assert len(schedule) / schedule.duration_s == pytest.approx(50)
    gaps = np.diff(schedule.arrival_s)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.15)  # Poisson's
    assert "Poisson" in workload.arrival_law.describe()
    with pytest.raises(UserError, match="says no times: give a rate, rate_qps or --qps"):
        workload.schedule()
    assert parse_sizes(f"file:{path}").mean == 200


WRONG = {
    "none.csv": (None, "no file"),
    "trace": ("arrival_s,size\n0,1\n", "name it by its kind, .csv"),
    "trace.xlsx": ("arrival_s,size\n0,1\n", "name it by its kind, .csv"),
    "bare.csv": ("0,3\n1,4\n", "no header: write arrival_s,size"),
    "three.csv": ("0,3,4\n1,4,5\n", "no header"),
    "milliseconds.csv": ("time,size\n0,1\n500,1\n", "time holds numbers: if they are seconds"),
    "words.csv": ("arrival_s,size\nsoon,1\n", "numbers or date-times .* such as 'soon'"),
    "mixed.csv": ("arrival_s,size\n2026-11-26T13:00:00Z,1\n2026-11-26T13:00:01,1\n", "numbers or"),
    "unsorted.csv": ("time,size\n2026-11-26T13:00:01,1\n2026-11-26T13:00:00,1\n", "row 2.*sort"),
    "empty.csv": ("", "cannot read"),
    "rows.csv": ("arrival_s,size\n0,1\n1\n", "cannot read.*columns"),
    "array.json": ('[{"arrival_s": 0, "size": 1}]', "jq -c"),
    "cut.jsonl": ('{"arrival_s": 0, "size": 1}\n{"arrival_s": 1,', "cannot read"),
    "without.jsonl": ('{"arrival_s": 0, "items": 1}\n', "no column size"),
    "gap.jsonl": ('{"arrival_s": 0, "size": 1}\n{"arrival_s": 1}\n', "row 2: size must"),
    "sizes.txt": ("0, 0, 0\n", "row 1: size must"),
    "text.parquet": ("arrival_s,size\n0,1\n", "cannot read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_refused_in_one_line_that_mends_it(tmp_path, name):
    text, says = WRONG[name]
    path = tmp_path / name if text is None else written(tmp_path, name, text)
    with pytest.raises(UserError, match=says) as error:
        parse_arrivals(f"replay:{path}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_zipped_is_told(tmp_path):
    (tmp_path / "t.csv.gz").write_text("arrival_s,size\n0,1\n")
    with pytest.raises(UserError, match=r"cannot read .*gzip"):
        parse_arrivals(f"replay:{tmp_path / 't.csv.gz'}")
