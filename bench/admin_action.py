"""How long an editor waits for "Send email update": the page that asks, and the button that queues.

Beside it, in the same run: the admin's own list of issues, which every editor waits for anyway.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from support import Figures, Medians, Statements, addresses, main, scratch_database, words

ROUNDS = 7
ISSUES = "/admin/newsroom/issue/"


def admin_action(count: int) -> Figures:
    """The pages of the action for one issue of ten articles with `count` subscribers, `ROUNDS` times each."""
    with scratch_database() as connection:
        from django.contrib.auth.models import User
        from django.test import Client

        from mailengine.models import MessageJob
        from project.newsroom.models import Article, Issue, Subscriber

        people = (Subscriber(email=address, name="Reader") for address in addresses(count))
        Subscriber.objects.bulk_create(people, batch_size=1_000)
        subject, text, _html = words()
        issue = Issue.objects.create(title=subject[:200], intro=text)
        Article.objects.bulk_create(Article(issue=issue, headline=subject[:200], body=text) for _ in range(10))
        client = Client(SERVER_NAME="localhost")
        client.force_login(User.objects.create_superuser("editor", "editor@example.org"))
        form: dict[str, Any] = {"action": "send_email_update", "_selected_action": str(issue.pk)}

        def get_list() -> None:
            _expect(200, client.get(ISSUES))

        def ask() -> None:
            page = _expect(200, client.post(ISSUES, form)).content.decode()
            found = re.search(r'name="token" value="([^"]+)"', page)
            if found is None:
                raise SystemExit(f"the admin showed no confirmation page:\n{page}")
            form["fresh token"] = found[1]

        def confirm() -> None:
            _expect(302, client.post(ISSUES, {**form, "token": form.pop("fresh token")}))

        times: dict[str, list[float]] = {"list": [], "ask": [], "confirm": []}
        queries: dict[str, float] = {}
        for is_warm in [False, *[True] * ROUNDS]:
            for name, step in (("list", get_list), ("ask", ask), ("confirm", confirm)):
                with Statements(connection) as statements:
                    started_at = time.perf_counter()
                    step()
                    elapsed = time.perf_counter() - started_at
                if is_warm:  # the first round loads the templates
                    times[name].append(elapsed * 1_000)
                    queries[name] = statements.count
        if MessageJob.objects.count() != ROUNDS + 1:
            raise SystemExit(f"{MessageJob.objects.count()} jobs were queued instead of {ROUNDS + 1}")
        return {
            **{f"{name}_ms": statistics.median(values) for name, values in times.items()},
            **{f"{name}_queries": number for name, number in queries.items()},
        }


def line(figures: Medians) -> str:
    names = {"ask": "confirmation page", "confirm": "confirming POST", "list": "list of issues"}
    return "; ".join(
        f"{text} {figures[f'{name}_ms']:.0f} ms ({figures.range(f'{name}_ms')}), "
        f"{figures[f'{name}_queries']:.0f} queries"
        for name, text in names.items()
    )


def _expect(status: int, response: Any) -> Any:
    if response.status_code != status:
        raise SystemExit(f"the admin answered {response.status_code} instead of {status}:\n{response.content.decode()}")
    return response


CASES: dict[str, Callable[[], Figures]] = {str(count): partial(admin_action, count) for count in (10, 1_000, 100_000)}

if __name__ == "__main__":
    main(CASES, line, title='admin_action: "Send email update" by number of subscribers', repeats=3)
