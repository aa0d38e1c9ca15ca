"""Calls of an ESP that carry many messages: what breaks in one puts all of them in doubt, and none arrives twice."""

from __future__ import annotations

from random import Random

from mailengine.models import Attempt, Message
from mailengine.testing.esp_server import Answer, Fault, Mail

from .case import case
from .cases_esp import fails
from .points import ENDING
from .sinks import ESPSink
from .world import World

BATCH = 50
NEWS = {"stream": "bulk", "job": True}


def an_esp(world: World, name: str = "postmark") -> ESPSink:
    world.configure(CONNECTIONS=2, LEASE_SECONDS=6, SEND_DEADLINE_SECONDS=3)
    return world.esp(name, policy={"BATCH": BATCH})


def in_calls() -> int:
    return Attempt.objects.filter(call_size__gt=1).count()


def kept() -> int:
    return Message.objects.filter(status="uncertain", available_at=None).count()


@case("F-P05c", "kill -9 after an ESP has taken a call of 50, before End")
def killed_with_a_call_in_flight(world: World, random: Random) -> None:
    an_esp(world)
    world.queue(600, **NEWS)
    for _ in world.times(4):
        world.kill_at(ENDING, nth=random.randint(2, 4))
    world.drain()
    assert in_calls() > 0
    sent, in_doubt = world.statuses().get("sent", 0), kept()
    assert in_doubt >= world.kills, "what was in flight is kept for a person"
    assert sent + in_doubt == 600, world.statuses()
    world.note(f"{world.kills} kills left {in_doubt} of 600 messages in doubt, with calls of up to {BATCH}")


@case(
    "F-E25", "calls of 50 that are answered 503, refused as a whole, taken in part, or dropped once taken", quick=True
)
def calls_that_fail(world: World, random: Random) -> None:
    esp = an_esp(world)
    ids = world.queue(200, **NEWS)
    esp.inactive = set(Message.objects.filter(pk__in=random.sample(ids, 3)).values_list("recipient", flat=True))
    happenings: list[Answer | Fault | None] = [None, Answer(503), None, Fault.ACCEPT_AND_HANG_UP, Answer(422, {})]

    def one_of_each(mail: Mail) -> Answer | Fault | None:
        return happenings.pop(0) if happenings else None

    fails(world, esp, one_of_each)
    world.drain()
    assert not happenings
    unsent = Message.objects.exclude(status="sent")
    refused = unsent.exclude(status="uncertain")
    in_doubt = set(unsent.filter(status="uncertain").values_list("recipient", flat=True))
    assert set(refused.values_list("recipient", flat=True)) == esp.inactive - in_doubt, world.statuses()
    assert unsent.count() == refused.count() + kept(), world.statuses()
    assert 0 < kept() <= BATCH
