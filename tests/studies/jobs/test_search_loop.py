"""Searches side by side, on runs that are not made but answered at once, late or never."""

from concurrent.futures import Executor, Future

import pandas as pd
import pytest

from noisescale.studies.jobs.search_loop import Failure, Job, SearchLoop, carry_out
from noisescale.studies.jobs.short_run import ShortRun
from noisescale.studies.jobs.tasks import Tasks


class Canned(Executor):
    """Notes what is submitted; `answer` what is to be done at once, the others by `finish`."""

    def __init__(self, *, at_once=True):
        self.at_once = at_once
        self.submitted = []
        self.futures = {}

    def submit(self, function, /, *args, **kwargs):
        (argument,) = args
        future = self.futures[argument] = Future()
        self.submitted.append(argument)
        if self.at_once:
            self.finish(argument)
        return future

    def finish(self, argument):
        if argument == "bad":
            self.futures[argument].set_exception(MemoryError("no room\nat all"))
        else:
            run = ShortRun({"seconds": 1.0, "value": argument}, pd.DataFrame(), None)
            self.futures[argument].set_result(run)


def never_called(argument):
    raise AssertionError


def job(argument):
    return Job(never_called, argument, name=f"run {argument}", kind="any")


def value(trial, run):
    return None if isinstance(run, Failure) else run.summary["value"]


def run_all(executor, *searches):
    tasks = Tasks(executor, None)
    with tasks:
        loop = SearchLoop(tasks)
        for search in searches:
            loop.begin(search)
        loop.run()
    return tasks


def test_a_search_gets_the_results_of_its_jobs_in_their_order():
    seen = []

    def search():
        seen.append([run.summary["value"] for run in (yield [job(3), job(1), job(2)])])
        seen.append([run.summary["value"] for run in (yield [job(4)])])

    executor = Canned()
    tasks = run_all(executor, search())
    assert seen == [[3, 1, 2], [4]]
    assert executor.submitted == [3, 1, 2, 4]
    assert tasks.progress.num_finished == 4
    assert tasks.failures == []


def test_a_failed_run_is_a_result_of_its_own_and_noted():
    results = []

    def search():
        results.extend((yield [job("bad"), job(1)]))

    tasks = run_all(Canned(), search())
    assert results[0] == Failure("MemoryError: no room")
    assert results[1].summary["value"] == 1
    assert tasks.failures == ["run bad: MemoryError: no room"]
    assert tasks.progress.num_finished == 1


def test_a_search_goes_on_only_once_all_its_results_are_there():
    executor = Canned(at_once=False)
    tasks = Tasks(executor, None)
    order = []

    def search(name, *arguments):
        for argument in arguments:
            yield [job((name, argument, part)) for part in "ab"]
            order.append((name, argument))
            for other in (one for one in executor.submitted if not executor.futures[one].done()):
                executor.finish(other)

    with tasks:
        loop = SearchLoop(tasks)
        loop.begin(search("slow", 1))
        loop.begin(search("fast", 1, 2))
        for part in "ab":
            executor.finish(("fast", 1, part))
        executor.finish(("slow", 1, "a"))
        loop.run()
    assert order[0] == ("fast", 1)
    assert sorted(order) == [("fast", 1), ("fast", 2), ("slow", 1)]


def test_a_search_may_begin_others():
    executor = Canned()
    tasks = Tasks(executor, None)

    def first():
        yield [job(1)]
        loop.begin(second())

    def second():
        yield [job(2)]
        executor.submitted.append("end")

    with tasks:
        loop = SearchLoop(tasks)
        loop.begin(first())
        loop.run()
    assert executor.submitted == [1, 2, "end"]


def test_a_search_that_knows_nothing_of_runs_is_carried_out():
    def doubling(limit):
        total = 0
        while total < limit:
            total += sum((yield [total + 1, total + 2]))
        return total

    values = []

    def search():
        values.append((yield from carry_out(doubling(10), job, value)))

    executor = Canned()
    run_all(executor, search())
    assert executor.submitted == [1, 2, 4, 5]
    assert values == [12]


def test_a_search_that_asks_for_nothing_is_an_error():
    def search():
        yield []

    with pytest.raises(AssertionError, match="for ever"):
        run_all(Canned(), search())


def test_an_error_in_a_search_ends_the_study():
    def search():
        yield [job(1)]
        raise ValueError("no rate reaches it")

    with pytest.raises(ValueError, match="no rate reaches it"):
        run_all(Canned(), search())
