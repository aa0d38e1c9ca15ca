"""What a client must not get by asking oddly: more than its key allows, others' secrets, or a fault of ours."""

from __future__ import annotations

import pytest
from django.test import Client

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


class TestWhereNothingIs:
    @pytest.mark.parametrize(
        "path", ["", "/", "/nothing", "/messages/", "/messages/7/cancel/", "/jobs/7/8/9", "/mess%0aages", "/%00"]
    )
    @pytest.mark.parametrize("method", ["get", "post", "delete", "options"])
    def test_a_path_that_is_none(self, shop, path, method):
        response = getattr(Client(enforce_csrf_checks=True), method)(f"/api/v1{path}", headers=shop.headers)

        assert problem_of(response, 404)["detail"] == "Not found."

    @pytest.mark.parametrize("method", ["put", "patch", "options", "trace", "head"])
    def test_a_method_that_is_none(self, shop, method):
        """SI10: no preflight of another site's page is let through either."""
        headers = {**shop.headers, "Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        response = getattr(shop.browser, method)("/api/v1/messages", headers=headers)

        assert (response.status_code, response["Content-Type"]) == (405, "application/problem+json")
        assert response["Allow"] == "GET, POST"
        assert not [name for name in response.headers if name.startswith("Access-Control-")]

    def test_a_method_in_a_header_is_none(self, shop):
        response = shop.get(
            "/api/v1/suppressions", {"address": "a@example.org"}, **{"X-HTTP-Method-Override": "DELETE"}
        )

        assert response.json() == {"items": [], "next": None}


def test_the_session_of_an_admin_is_no_key(admin_client):
    """SI10"""
    assert problem_of(admin_client.get("/api/v1/messages"), 401)
    assert problem_of(admin_client.post(JOBS, a_job(), content_type="application/json"), 401)
