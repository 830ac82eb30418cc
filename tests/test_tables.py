"""Tables of measured rows: what they print, mark and hand on."""

import json

import expecttest
import pytest

from swiftvideo_fast.report.tables import Cell, Row, Table, as_json, comparison, ratio

ROWS = [
    Row("real", None, {"frechet": [3.0, 3.2], "motion": [1.0, 1.0]}),
    Row("teacher", 4, {"frechet": [100.0, 120.0], "trajectory": [0.08, 0.08], "motion": [0.7, 0.7]}),
    Row("teacher", 1, {"frechet": [300.0, 320.0], "trajectory": [0.5, 0.5], "motion": [0.1, 0.1]}),
    Row("student", 4, {"frechet": [33.0, 33.0], "trajectory": [0.02, 0.02], "motion": [0.9, 0.9]}),
    Row("student", 3, {"frechet": [50.0, 50.0], "motion": [0.9, 0.9]}),
]


class TestText(expecttest.TestCase):
    def test_columns_are_aligned_ratios_are_at_equal_steps_and_a_static_copy_is_named(self):
        self.assertExpectedInline(comparison(ROWS).text(), """\
Quality by sampling steps

         steps  Frechet, trained       trajectory error  motion / real
----------------------------------------------------------------------
real                   3.1 ± 0.1                      –    1.00 ± 0.00
teacher      4      110.0 ± 14.1        0.0800 ± 0.0000    0.70 ± 0.00
teacher      1      310.0 ± 14.1        0.5000 ± 0.0000    0.10 ± 0.00
student      4  33.0 ± 0.0 ×0.30  0.0200 ± 0.0000 ×0.25    0.90 ± 0.00
student      3        50.0 ± 0.0                      –    0.90 ± 0.00

Mean ± standard deviation over 2 seeds. × is the ratio to teacher at
equal steps (lower is better). Static copy: teacher at 1 step moves
×0.10 as much as real clips.""")


def test_one_seed_has_no_spread_and_says_so():
    table = comparison([Row("student", 4, {"frechet": [33.0]})])
    assert table.rows[0][2] == Cell("33.0")
    assert table.note.startswith("One seed.")


def test_only_rows_with_a_reference_are_strong():
    assert comparison(ROWS).strong == {3}


def test_columns_that_no_row_has_are_left_out():
    assert comparison(ROWS).head == ["", "steps", "Frechet, trained", "trajectory error", "motion / real"]


def test_a_value_that_is_not_finite_is_said_in_words():
    assert comparison([Row("student", 4, {"frechet": [float("nan")]})]).rows[0][2] == Cell("not finite")


def test_the_ratio_is_of_means_and_absent_without_a_reference():
    teacher, student = ROWS[1], ROWS[3]
    assert ratio(student, teacher, "frechet") == pytest.approx(0.3)
    assert ratio(student, None, "frechet") is ratio(student, ROWS[0], "trajectory") is None


def test_json_holds_every_seed_the_mean_the_spread_and_the_ratio():
    student = json.loads(json.dumps(as_json(ROWS)))[3]
    assert (student["name"], student["steps"]) == ("student", 4)
    assert student["metrics"]["frechet"] == {"seeds": [33.0, 33.0], "mean": 33.0, "spread": 0.0,
                                             "ratio": pytest.approx(0.3)}


def test_html_escapes_names_and_marks_heads_for_screen_readers():
    html = Table("a & b", ["<net>", "x"], [["<b>", Cell("1", "± 2", "×3")]], strong=frozenset({0})).html()
    assert "<b>" not in html and "&lt;b&gt;" in html and "&lt;net&gt;" in html
    assert '<th scope="row">' in html and 'class="strong"' in html
    assert '1 <span class="spread">± 2</span> <span class="remark">×3</span>' in html


def test_rows_that_take_no_steps_have_no_column_of_them():
    table = comparison([Row("a", None, {"frechet": [1.0]}), Row("b", None, {"frechet": [2.0]})], against="")
    assert table.head == ["", "Frechet, trained"] and [row[0] for row in table.rows] == ["a", "b"]
