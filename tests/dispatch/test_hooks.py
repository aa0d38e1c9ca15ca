"""Functions of a project that stand in for ours: when to probe, and what counts as a provider's fault."""

from __future__ import annotations

import pytest

from mailengine import dispatch_slice
from mailengine.models import ProviderState
from mailengine.testing import FakeProvider
from tests import project_hooks

from .helpers import ledger, queue, queue_many

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh():
    FakeProvider.reset()
    project_hooks.SEEN.clear()
    project_hooks.ANSWERS["probe"] = True
    yield
    FakeProvider.reset()


class TestShouldProbe:
    """P16: it is given how long ago the provider failed, and how many calls others have had since."""

    @pytest.fixture
    def broken(self, configure):
        """a has just failed three times, and b taken those three and five more."""

        def set_up(path):
            configure({"a": {"script": ["unavailable"] * 3}, "b": {}}, SHOULD_PROBE=path)
            project_hooks.ANSWERS["probe"] = False
            queue_many(3)
            dispatch_slice()
            queue_many(5)
            dispatch_slice()
            project_hooks.SEEN.clear()

        return set_up

    def test_it_may_probe_before_the_interval_is_over(self, broken):
        broken("tests.project_hooks.should_probe")
        project_hooks.ANSWERS["probe"] = True
        message = queue()

        dispatch_slice()

        assert ledger(message) == [("a", "accepted")]
        state = project_hooks.SEEN[0]
        assert (state.alias, state.circuit.is_open) == ("a", True)
        assert state.calls_elsewhere >= 5  # the five, and what of the three began after the last failure
        assert 0 <= state.seconds_since_failure < 60

    def test_it_may_wait_for_longer(self, broken, clock):
        broken("tests.project_hooks.should_probe")
        clock.advance(hours=1)
        message = queue()

        dispatch_slice()

        assert ledger(message) == [("b", "accepted")]
        assert project_hooks.SEEN

    @pytest.mark.parametrize("name", ["fail", "ask_in_vain"])
    def test_one_that_fails_leaves_it_to_the_interval(self, broken, clock, caplog, name):
        broken(f"tests.project_hooks.{name}")
        first = queue()
        dispatch_slice()
        clock.advance(minutes=2)
        second = queue()

        dispatch_slice()

        assert (ledger(first), ledger(second)) == ([("b", "accepted")], [("a", "accepted")])
        assert "SHOULD_PROBE failed for a" in caplog.text

    def test_one_that_is_not_there_leaves_it_to_the_interval(self, broken, caplog):
        broken("tests.project_hooks.no_such_function")
        message = queue()
        dispatch_slice()
        assert ledger(message) == [("b", "accepted")]
        assert "can't be imported" in caplog.text


class TestClassifier:
    """P17: a function of the project's own says what counts as whose fault."""

    def test_it_is_given_our_judgement_and_may_give_another(self, configure):
        configure({"a": {"fails_every": 1}, "b": {}}, CLASSIFIER="tests.project_hooks.judge")
        message = queue()

        dispatch_slice()

        assert ledger(message) == [("a", "misconfigured"), ("b", "accepted")]
        assert ProviderState.objects.get(alias="a").misconfigured
        assert [(str(kind), error.__name__, alias) for kind, error, alias in project_hooks.SEEN] == [
            ("unavailable", "ConnectionRefusedError", "a")
        ]

    def test_it_may_agree(self, configure):
        configure({"a": {"script": ["bad_address"]}}, CLASSIFIER="tests.project_hooks.judge")
        message = queue()
        dispatch_slice()
        assert ledger(message) == [("a", "refused")]
        assert not ProviderState.objects.get(alias="a").is_open

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("tests.project_hooks.fail", "CLASSIFIER failed on unavailable"),
            ("tests.project_hooks.say_nothing", "CLASSIFIER gave str and no Outcome for a"),
            ("tests.project_hooks.no_such_function", "can't be imported"),
        ],
    )
    def test_one_that_fails_changes_nothing(self, configure, caplog, path, said):
        configure({"a": {"script": ["unavailable"]}, "b": {}}, CLASSIFIER=path)
        message = queue()
        dispatch_slice()
        assert ledger(message) == [("a", "unavailable"), ("b", "accepted")]
        assert said in caplog.text
