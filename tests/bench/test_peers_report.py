"""What a run beside the peers says of itself: tables, goals and a drawing, made of rows."""

import xml.etree.ElementTree as ElementTree

import pytest

from bench.peers.report import BEGIN, END, Spread, drawing, goals, goals_table, put_between_markers, tables

PRODUCTS = {
    "mailengine": "mailengine",
    "mailengine-64": "mailengine",
    "mailengine-1": "mailengine",
    "post_office": "django-post_office",
    "procrastinate-8": "procrastinate",
    "smtp-source-8": "limit",
    "smtp-source-32": "limit",
}
OWN_WORDS = ["post_office"]


def row(case, engine, **figures):
    return {"case": case, "engine": engine, "count": 1_000, **figures}


def rates(case, **by_engine):
    """A row for each rate: `rates("drain", mailengine=[900, 1_100])`."""
    return [
        row(case, engine.replace("__", "-"), rate=float(rate)) for engine, found in by_engine.items() for rate in found
    ]


def goal(rows, what):
    found = [goal for goal in goals(rows, PRODUCTS, OWN_WORDS) if goal.what.startswith(what)]
    assert found, what
    return found[0]


def test_a_figure_is_a_median_with_both_ends():
    assert Spread.of([3, 1, 2.5]).text(1) == "2.5 (1.0 to 3.0)"


def test_a_figure_of_one_run_has_no_ends():
    assert Spread.of([1_234.4]).text() == "1,234"


def test_a_table_has_a_line_for_each_engine_and_leaves_out_what_nobody_measured():
    rows = [*rates("drain", mailengine=[900, 1_000, 1_100], post_office=[300])]

    assert tables(rows, {"post_office": "django-post_office, as it comes"}).splitlines()[-4:] == [
        "|  | mails | mails/s |",
        "| --- | ---: | ---: |",
        "| mailengine | 1,000 | 1,000 (900 to 1,100) |",
        "| django-post_office, as it comes | 1,000 | 300 |",
    ]


def test_a_case_that_was_not_measured_has_no_table():
    assert "SQLite" not in tables(rates("drain", mailengine=[1]), {})


def test_draining_is_held_against_the_best_peer_by_medians():
    rows = rates("drain", mailengine=[1_900, 2_000, 2_100], post_office=[300, 400, 9_000], procrastinate__8=[100])

    reached = goal(rows, "draining mails of a job")

    assert (reached.measured, reached.is_reached) == (5.0, True)


def test_the_machines_own_clients_are_held_against_apart():
    rows = rates("drain", mailengine=[2_000], post_office=[1_000])
    rows += rates("drain", **{"smtp-source__32": [4_000], "smtp-source__8": [5_000]})

    reached = [g.measured for g in goals(rows, PRODUCTS, OWN_WORDS) if g.what == "draining mails of a job"]

    assert reached == [2.0, 0.4]


def test_single_mails_are_held_against_peers_whose_mails_have_words_of_their_own():
    rows = rates("singles", mailengine=[900]) + rates("drain", post_office=[300], procrastinate__8=[500])

    assert goal(rows, "draining single mails").measured == 3.0


def test_a_slow_provider_is_held_against_what_its_connections_allow():
    assert goal(rates("slow", mailengine__64=[1_024]), "a provider of 50 ms").measured == pytest.approx(0.8)


def test_queueing_is_held_against_the_time_that_the_bare_rows_take():
    rows = rates("queue_each", mailengine=[250], orm_rows=[1_000])

    reached = goal(rows, "`queue_mail()`")

    assert (reached.measured, reached.is_reached) == (4.0, False)


@pytest.mark.parametrize(("p99", "is_reached"), [(0.9, True), (1.1, False)])
def test_urgent_mail_must_not_wait_longer(p99, is_reached):
    rows = [row("urgent", "mailengine", p50=0.01, p99=p99)]

    assert goal(rows, "urgent mail during a drain, p99").is_reached is is_reached


def test_memory_is_that_of_the_daemon_where_there_is_one():
    rows = [
        row("memory", "mailengine-1", rss=200e6, growth=9e6, queued=5_000),
        row("memory", "mailengine-worker-1", rss=100e6, growth=1e6, queued=5_000),
    ]
    products = {**PRODUCTS, "mailengine-worker-1": "mailengine"}

    sizes = {g.what: g.measured for g in goals(rows, products, OWN_WORDS) if g.unit == "MB"}

    assert sizes == {"memory of a worker, 5,000 queued": 100.0, "its growth from 1,000 to 5,000 queued": 1.0}


def test_a_goal_that_was_not_measured_says_so():
    lines = goals_table(goals([], PRODUCTS, OWN_WORDS)).splitlines()

    assert len(lines) == 2 + 12
    assert all("| not measured |" in line for line in lines[2:])


def test_the_drawing_has_a_bar_for_each_engine_longest_first():
    rows = rates("drain", post_office=[100], mailengine=[400])

    picture = ElementTree.fromstring(drawing(rows, {}, PRODUCTS))  # noqa: S314  our own

    bars = picture.findall("{http://www.w3.org/2000/svg}rect")
    assert [bar.get("class") for bar in bars] == ["mailengine", "peer"]
    assert float(bars[0].get("width")) == 4 * float(bars[1].get("width"))


def test_the_drawing_escapes_names():
    assert "&lt;b&gt;" in drawing(rates("drain", mailengine=[1]), {"mailengine": "<b>"}, PRODUCTS)


def test_figures_are_put_between_the_markers():
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"

    assert put_between_markers(page, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="no place for the figures"):
        put_between_markers("a page", "new")
