"""What one client queues doesn't hold up what another one has to say now."""

from __future__ import annotations

from django.core.management import call_command

from mailengine.models import Message, ProviderState

from .test_messages import URL, a_message


def test_much_mail_that_is_sure_to_fail(caller, configure):
    """SI11: it waits behind urgent mail, and is no reason to give a provider up."""
    configure({"relay": {"script": ["accept", *["bad_address"] * 300], "repeat": False}})
    attacker, shop = caller(client="attacker", scopes=["send:transactional"]), caller()
    attacker.post(URL, [a_message(to=[f"nobody{n}@example.net"], subject=f"No. {n}") for n in range(300)])
    first = shop.post(URL, a_message(priority="urgent")).json()["id"]

    call_command("send_mail", limit=1, verbosity=0)
    assert Message.objects.get(pk=first).status == "sent"

    call_command("send_mail", verbosity=0)
    assert Message.objects.filter(client="attacker", status="dead").count() == 300
    state = ProviderState.objects.get(pk="relay")
    assert (state.is_open, state.misconfigured) == (False, False)
    second = shop.post(URL, a_message(priority="urgent")).json()["id"]
    call_command("send_mail", verbosity=0)
    assert Message.objects.get(pk=second).status == "sent"
