"""A queue for tests of engines, and a way to wait for other processes."""

import contextlib
import threading

from neural_alignment.errors import Stopped


def awaited(fact, over=None):
    """Waits for a fact that another process brings about; returns whether it came before the event `over`."""
    while not fact():
        if over is not None and over.is_set():
            return False
        threading.Event().wait(0.02)
    return True


@contextlib.contextmanager
def beside(function):
    """Runs `function(over)` in a thread. The event `over` is set at the end of the body, which waits for the thread."""
    over = threading.Event()
    thread = threading.Thread(target=function, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Recorder:
    """A queue of given jobs that records how they end.

    Args:
        folder: see `pool.Queue`.
        jobs: the jobs.
    """

    def __init__(self, folder, jobs):
        self.folder = str(folder)
        self.jobs = list(jobs)
        self.endings = {}
        self.waiting = list(jobs)
        self.shown = 0
        self.independent = True
        self.events = []

    def left(self):
        return len(self.jobs) - len(self.endings)

    def next(self):
        return self.waiting.pop(0) if self.waiting else None

    def put_back(self, job):
        self.waiting.insert(0, job)

    def waits(self, job):
        self.events.append(("waits", job.name))

    def begins(self, job):
        self.events.append(("begins", job.name))

    def say(self, line):
        self.events.append(("says", line))

    def ended(self, job, ending):
        if ending.state in ("stopped", "unavailable"):
            raise Stopped(f"{job.name}: {ending.reason}")
        self.endings[job.name] = ending

    def show_progress(self):
        self.shown += 1
