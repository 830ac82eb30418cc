"""Tables of measured rows: text, colours and JSON."""

import json

import expecttest
import pytest

from swiftvideo_fast.report.tables import (
    METRICS,
    Cell,
    Metric,
    Row,
    Table,
    ablation,
    as_json,
    comparison,
    ratio,
)

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
equal steps. Static copy: teacher at 1 step moves ×0.10 as much as real
clips.""")


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
    html = Table("a & b", ["<net>", "x<"], [["<i>", Cell("1", "± 2", "×3", "worse")]], groups={0: "<g>"},
                 strong=frozenset({0}), explained={"x<": "a < b"}).html()
    assert "<i>" not in html and "&lt;i&gt;" in html and "&lt;net&gt;" in html and "&lt;g&gt;" in html
    assert '<th scope="row">' in html and 'class="strong"' in html and "<dd>a &lt; b</dd>" in html
    assert '<td data-label="x&lt;" class="worse">' in html and "Green is better" in html
    assert '<b>1</b> <span class="spread">± 2</span> <span class="remark">×3</span>' in html


def test_every_metric_is_explained_in_a_line_where_it_is_shown():
    assert all(40 < len(m.about) < 160 for m in METRICS.values())
    table = comparison(ROWS)
    assert table.explained == {m.label: m.about for key, m in METRICS.items()
                               if key in ("frechet", "trajectory", "motion")}


def tone(value: list[float], reference: list[float], better: str) -> str:
    rows = [Row("teacher", 4, {"m": reference}), Row("student", 4, {"m": value})]
    return comparison(rows, metrics={"m": Metric("m", 1, better=better)}).rows[1][2].tone


def test_a_figure_is_coloured_by_what_is_better_for_its_metric():
    found = [tone([2.0], [3.0], better) for better in ("lower", "higher", "one", "")]
    assert found == ["better", "worse", "better", ""]
    assert [tone([0.5], [0.9], b) for b in ("lower", "higher", "one")] == ["better", "worse", "worse"]
    assert [tone([0.8], [1.3], "one"), tone([1.3], [0.8], "one")] == ["better", "worse"]
    assert tone([1.15], [0.85], "one") == ""                # as far from it, on the other side


def test_what_seeds_cannot_tell_apart_has_no_colour():
    assert tone([2.95], [3.0], "lower") == ""               # one seed: within 3 %
    assert tone([2.0, 4.2], [3.0, 3.4], "lower") == ""      # two standard errors
    assert tone([2.0, 2.1], [3.0, 3.1], "lower") == "better"
    assert tone([float("nan")], [3.0], "lower") == ""


def test_settings_stand_under_the_question_they_answer():
    rows = [Row(name, 4, {"frechet": [f]}) for name, f in (("CCD", 3.0), ("CCD + DA", 2.0))]
    table = ablation(rows, {"adversary": ["CCD", "CCD + DA"]}, steps=4, paper={"CCD": 172.54})
    assert table.groups == {0: "adversary"} and [row[0] for row in table.rows] == ["CCD", "CCD + DA"]
    assert table.rows[1][1] == Cell("2.0", "", "×0.67", "better") and table.rows[0][2] == "172.54"
    assert [*table.explained] == ["FVD in the paper"]
    adversary, ccd = table.text().splitlines()[4:6]
    assert adversary == "adversary" and ccd.startswith("  CCD ")


def test_rows_that_take_no_steps_have_no_column_of_them():
    table = comparison([Row("a", None, {"frechet": [1.0]}), Row("b", None, {"frechet": [2.0]})], against="")
    assert table.head == ["", "Frechet, trained"] and [row[0] for row in table.rows] == ["a", "b"]
