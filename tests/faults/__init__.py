"""The fault harness: real faults, real worker processes, a real database, and servers that write down what arrives.

    make faults                              all cases, each on a database server of its own: 30 minutes
    python -m tests.faults F-P04 C2          one case; one group
    python -m tests.faults F-P04 --seed 7    one run again
    pytest tests/faults                      the quick ones, on the database under test: part of the suite

How to write a case. A module `cases_<what>.py` is found by its name; in it a function for each row:

    @case(
        "F-P04",
        "kill -9 after the final dot, before the 250; the server has taken the mail",
        duplicates="1 for each connection of a killed process",
        bound=lambda run: 4 * run.kills,
        quick=True,
    )
    def killed_after_the_dot(world: World, random: Random) -> None:
        sink = world.smtp()
        sink.on(Step.DOT, kill_worker, when=(fuse := Fuse()))
        for _ in world.times(20):
            world.queue(20)
            fuse.light(random.randint(1, 20))
            world.until_killed(world.worker("send_mail"))

It sets the scene, does the harm, and returns. The runner then heals the sinks, thaws what is frozen, and runs the three
commands as cron does until nothing is due soon (`world.drain()`; call it yourself where you want to look at what came
of it). Then the oracle holds the sinks' log against the ledger. Whatever the case: nothing lost, nothing unexpected,
nothing stuck, no attempt open, no lease left, at most two copies of one message, no more duplicates than `bound(run)`,
as many attempts accepted as the sinks say, and no worker that ended in an error. What else must hold is an `assert`.

- At a random instant harm is done 20 times or more: in one run, `for _ in world.times(20)` (a few in the suite), which
  is quicker, or in as many runs, `seeds=20`. Take all chance from `random`. A run whose fault did not hit its window
  raises `Missed`, and another seed is played instead.
- `duplicates` is the bound in words, `bound` as a function of the `Run` (`kills`, `faults`, `seed`).
- `databases`: where it makes sense; the first is where `make faults` plays it. `quick=True`: also part of the suite;
  then it takes two seconds or three, and works on all its databases. A few for each group: the suite waits for them.
- `leaves_waiting=True`: mail may be left that is due much later. A worker that may end in an error: `.may_fail`.
- A row that can't be built honestly: `not_built("F-D12", "failover to a replica", "why")`. The table prints it.

A world's times are real and short: a lease of 3 s, a deadline of 1.5 s for one send, an uncertain window and a probe
interval of 0.5 s (`world.SHORT`); `world.configure(LEASE_SECONDS=...)` for other ones. Wait for conditions
(`world.wait_until`), never for seconds, and never assert seconds: the machine may be busy. Figures that bind nobody,
such as rows in a second, are for `world.note("...")`, which has them printed below the table. After a run of all cases
`--markdown docs/reference/faults.md` writes tables and notes to that page.

What there is to break:

- Providers: `world.smtp("relay")` and `world.esp("mailgun")`, in the order of preference; see `sinks.py` for scripts.
- Workers: `world.worker("send_mail")`, `.kill()`, `.terminate()`, `.freeze()`, `.thaw()`, `.wait()`; `moment.worker` is
  the one at the other end of a sink's connection; `before=at(BEGUN, KILL)` stops it from within, see `points.py`.
- The database: `world.cluster.stop("immediate")` and `.start()`: each case has a server of its own, see `servers.py`.
  `databases.py` has workers that say what they meet, and connections beside theirs.
- The network: `proxy = world.proxy(sink.port)`, `world.route("relay", proxy.port)`; for the database
  `world.worker(via=proxy)`. `.cut()`, `.stall()`, `.down()`, `.heal()`, and each direction by itself; see `proxy.py`.
"""
