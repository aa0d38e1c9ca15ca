"""Where a worker can be stopped from within: Python for `world.worker(..., before=...)`.

    world.worker("send_mail", before=at(BEGUN, KILL, nth=3))

The product has no hooks for this; the script replaces a function by one that does something and calls it.
"""

from __future__ import annotations

KILL = "os.killpg(os.getpid(), signal.SIGKILL)"
FREEZE = "os.kill(os.getpid(), signal.SIGSTOP)"

# (function, before or after it)
CLAIMED = ("mailengine.pipeline.dispatch:Dispatcher._stock_up", "before")
"""The claim is committed, nothing is composed."""
COMPOSED = ("mailengine.pipeline.dispatch:Dispatcher._compose_next", "after")
BEGINNING = ("mailengine.models.attempts:AttemptQuerySet.begin", "after")
"""Begin is written, and not yet committed."""
BEGUN = ("mailengine.pipeline.senders:Team.send", "before")
"""Begin is committed, no connection is made."""
ENDING = ("mailengine.models.attempts:AttemptQuerySet.end_many", "before")
"""The provider has answered, nothing of it is written."""
ENDED = ("mailengine.models.messages:MessageQuerySet.settle_sent", "after")
"""End is written, and not yet committed."""
SETTLED = ("mailengine.pipeline.dispatch:Dispatcher._confirm", "before")
"""End is committed, and with it the Begin of the next."""
THROUGH = ("mailengine.pipeline.dispatch:Dispatcher._give_back", "before")
"""All is sent and committed that this run may send; what it has claimed beyond that is not yet given back."""
RESCUING = ("mailengine.models.messages:MessageQuerySet._rescue", "after")
"""A batch of a rescue is written, and not yet committed."""


def at(point: tuple[str, str], do: str, *, nth: int = 1, imports: str = "") -> str:
    """Python that does `do` when this point is reached for the `nth` time."""
    target, when = point
    module, _, name = target.rpartition(":")
    *path, attribute = name.split(".")
    owner = ".".join(["module", *path])
    return f"""
import importlib, os, signal, time
{imports}
module = importlib.import_module({module!r})
original = {owner}.{attribute}
count = 0
def look():
    global count
    count += 1
    if count == {nth}:
        {do}
def wrapped(*args, **kwargs):
    {"look()" if when == "before" else "pass"}
    result = original(*args, **kwargs)
    {"look()" if when == "after" else "pass"}
    return result
setattr({owner}, {attribute!r}, wrapped)
"""
