"""What a client must not get by asking oddly: more than its key allows, others' secrets, or a fault of ours."""

from __future__ import annotations

import pytest

from mailengine.models import MessageJob

from .conftest import errors_of, problem_of

JOBS = "/api/v1/jobs"


def a_job(**changes):
    job = {"from": "shop@example.org", "subject": "News", "text": "Good morning.", "recipients": ["ann@example.net"]}
    return {name: value for name, value in {**job, **changes}.items() if value is not ...}


class TestAudiences:
    @pytest.mark.parametrize("audience", ["a@example.net", "a@example.net, b@example.net", "a b", "a;b", "", "x" * 101])
    def test_it_is_a_name_and_no_list_of_addresses(self, caller, audience):
        """A list there would be counted as one mail, and needed no scope."""
        key = caller(rate="1/min", scopes=["send:bulk"])

        assert list(errors_of(key.post(JOBS, a_job(recipients=..., audience=audience)))) == ["#/audience"]
        assert not MessageJob.objects.exists()

    def test_those_of_others_are_not_named(self, shop):
        answers = [shop.post(JOBS, a_job(recipients=..., audience=name)) for name in ("subscribers", "subscriber")]

        assert {response.status_code for response in answers} == {403}
        assert "subscribers" not in problem_of(answers[1], 403)["detail"]

    def test_one_that_is_gone(self, caller):
        key = caller(scopes=["send:bulk", "audience:gone"])

        assert list(errors_of(key.post(JOBS, a_job(recipients=..., audience="gone")))) == ["#/audience"]
