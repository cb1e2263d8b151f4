"""How the local processes of a study are started."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from noisescale.studies.jobs import local
from noisescale.studies.jobs.local import LocalProcesses, start_context


@pytest.fixture
def started(monkeypatch):
    """Stands in for the start of the server; how often it was asked for."""
    calls = []
    monkeypatch.setattr(local.forkserver, "ensure_running", lambda: calls.append(1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(local.sys, "platform", "linux")
    return calls


def test_processes_are_forked_by_a_server_where_nothing_is_in_its_way(started):
    assert start_context().get_start_method() == "forkserver"
    assert started == [1]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_spawn(started, platform, monkeypatch):
    monkeypatch.setattr(local.sys, "platform", platform)
    assert start_context().get_start_method() == "spawn"
    assert started == []


def test_where_there_is_a_gpu_processes_are_spawned(started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert start_context().get_start_method() == "spawn"
    assert started == []


def test_a_server_that_cannot_be_started_is_done_without(started, monkeypatch):
    def fail():
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(local.forkserver, "ensure_running", fail)
    assert start_context().get_start_method() == "spawn"


def _seen():
    """What a process is, of that which its parent has."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return os.environ.get("NOISESCALE_TEST"), str(Path.cwd()), signal.SIGINT in blocked, os.getpid()


@pytest.mark.processes
@pytest.mark.slow
def test_forked_processes_are_in_their_parents_place(monkeypatch, tmp_path):
    """Whatever has changed since the server was started."""
    seen = []
    for value in ("one", "two"):
        place = tmp_path / value
        place.mkdir()
        monkeypatch.chdir(place)
        monkeypatch.setenv("NOISESCALE_TEST", value)
        pool = LocalProcesses(1)
        try:
            seen.append(pool.submit(_seen).result(timeout=120))
            imported = pool.submit(_has_torch).result(timeout=120)
        finally:
            pool.shutdown()
        assert seen[-1][:3] == (value, str(place), True)
        assert imported or multiprocessing.get_start_method() == "spawn"
    assert seen[0][3] != seen[1][3]


def _has_torch():
    import sys

    return "torch" in sys.modules
