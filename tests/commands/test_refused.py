"""Exit codes of real processes that can't begin: 2 usage or configuration, 1 no database. None needs the test's own."""

from importlib.util import find_spec

import pytest

from tests.commands.programs import run

COMMANDS = ["process_mail_jobs", "send_mail", "retry_deferred", "purge_mail"]
IN_MEMORY, NOWHERE = "sqlite://:memory:", "sqlite:////no/mail"
POSTGRESQL = "postgres://nobody@127.0.0.1:1/mail"
needs_mysqlclient = pytest.mark.skipif(find_spec("MySQLdb") is None, reason="needs mysqlclient")


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (["send_mail", "--limit", "0"], "'0' is not a whole number of 1 or more"),
        (["send_mail", "--workers", "-1"], "'-1' is not a whole number of 1 or more"),
        (["process_mail_jobs", "--max-time", "soon"], "'soon' is not a number of seconds"),
        (["purge_mail", "--days", "-1"], "'-1' is not a number of days"),
        (["retry_deferred", "--stream", "bluk"], "Did you mean 'bulk'?"),
        (["send_mail", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
    ids=" ".join,
)
def test_an_option_that_makes_no_sense_is_a_usage_error(arguments, seen):
    ended = run(*arguments, DATABASE_URL=IN_MEMORY)

    assert ended.returncode == 2
    assert seen in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_failed_system_check_is_a_configuration_error(command):
    ended = run(command, DATABASE_URL=IN_MEMORY, MAIL_PROVIDERS="relay,postmrk")

    assert ended.returncode == 2
    assert "'postmrk', which MAILERS does not have" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("command", "url"),
    [
        *((command, POSTGRESQL) for command in [*COMMANDS, "mail_status"]),
        pytest.param("send_mail", "mysql://nobody@127.0.0.1:1/mail", marks=needs_mysqlclient),
        ("send_mail", NOWHERE),
        ("mail_status", NOWHERE),
    ],
)
def test_a_database_that_is_down_is_one_line_with_the_mend(command, url):
    """F-D01: nothing is retried, cron comes again in a minute."""
    ended = run(command, DATABASE_URL=url)

    (line,) = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "the database does not answer: " in line
    assert ("/no/mail" if "sqlite" in url else "mail at 127.0.0.1:1") in line
    assert "mend DATABASES['default']" in line


def test_for_monitoring_a_database_that_is_down_is_unknown():
    ended = run("mail_status", "--check", DATABASE_URL=POSTGRESQL)

    assert (ended.returncode, ended.stderr) == (3, "")
    assert ended.stdout.startswith("MAIL UNKNOWN: the database does not answer: ")
    assert len(ended.stdout.splitlines()) == 1
