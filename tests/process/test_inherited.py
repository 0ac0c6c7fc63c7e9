"""Objects that remember their process: made when a test module is imported, used in a worker.

Either the worker gets them as its own, or level ``auto`` falls back; plain pytest passes each.
"""

from __future__ import annotations

import re

import pytest

from tests.conftest import Runner
from tests.process.test_tripwires import causes, skip_without

#: A test module's objects, and what a test does with them; no worker may collect for itself.
OWN = {
    "file lock": (
        """
    import filelock
    LOCKS = [filelock.FileLock("a.lock"), filelock.SoftFileLock("b.lock")]
    for lock in LOCKS:
        with lock:
            pass
        """,
        """
        for lock in LOCKS:
            with lock, lock:
                assert lock.is_locked
            assert not lock.is_locked
        """,
    ),
    "singleton file lock": (
        """
    import filelock, inspect
    if "is_singleton" in inspect.signature(filelock.FileLock.__init__).parameters:
        LOCKS = [filelock.FileLock("a.lock", is_singleton=True) for _ in range(2)]
    else:
        LOCKS = []
        """,
        """
        for lock in LOCKS:
            with filelock.FileLock("a.lock", is_singleton=True) as held:
                assert held is lock
        """,
    ),
    "read and write lock": (
        """
    import filelock
    LOCKS = [
        cls(f"{cls.__name__}.lock")
        for name in ("ReadWriteLock", "SoftReadWriteLock")
        if (cls := getattr(filelock, name, None)) and "3.2" not in filelock.__version__[:3]
    ]
        """,
        """
        for lock in LOCKS:
            with lock.read_lock():
                pass
            assert type(lock)(f"{type(lock).__name__}.lock") is lock
        """,
    ),
    "asynchronous file lock": (
        """
    import asyncio, filelock
    LOCKS = [filelock.AsyncFileLock("a.lock")] if hasattr(filelock, "AsyncFileLock") else []
    async def use(lock):
        async with lock:
            assert lock.is_locked
        """,
        """
        for lock in LOCKS:
            asyncio.run(use(lock))
        """,
    ),
    "process to be started": (
        """
    import multiprocessing
    PROCESSES = [multiprocessing.Process(target=print) for _ in range(8)]
        """,
        """
        process = PROCESSES.pop()
        process.start()
        process.join()
        assert process.exitcode == 0 and not process.is_alive()
        """,
    ),
    "asyncio primitives": (
        """
    import asyncio
    LOCK, QUEUE = asyncio.Lock(), asyncio.Queue()
    async def use():
        process = await asyncio.create_subprocess_exec("true")
        async with LOCK:
            await QUEUE.put(await process.wait())
            return await QUEUE.get()
    assert asyncio.run(use()) == 0
        """,
        """
        async def again():
            async with asyncio.timeout(30) if hasattr(asyncio, "timeout") else asyncio.Lock():
                process = await asyncio.create_subprocess_exec("true")
                return await process.wait()
        assert asyncio.run(again()) == 0
        """,
    ),
    "pool of threads": (
        """
    from concurrent.futures import ThreadPoolExecutor
    POOL = ThreadPoolExecutor(1)
        """,
        """
        assert POOL.submit(abs, -1).result(30) == 1
        """,
    ),
    "sqlalchemy": (
        """
    import sqlalchemy
    ENGINE = sqlalchemy.create_engine("sqlite://")
    with ENGINE.connect() as connection:
        connection.execute(sqlalchemy.text("select 1"))
        """,
        """
        with ENGINE.connect() as connection:
            assert connection.execute(sqlalchemy.text("select 1")).scalar() == 1
        """,
    ),
    "pymongo": (
        """
    import pymongo
    CLIENT = pymongo.MongoClient("127.0.0.1", 1, serverSelectionTimeoutMS=20, connect=False)
        """,
        """
        with pytest.raises(pymongo.errors.ServerSelectionTimeoutError):
            CLIENT.admin.command("ping")
        """,
    ),
    "redis": (
        """
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
    CLIENT = redis.Redis(port=1, retry=Retry(NoBackoff(), 0))
    try:
        CLIENT.ping()
    except redis.ConnectionError:
        pass
        """,
        """
        with pytest.raises(redis.ConnectionError):
            CLIENT.ping()
        """,
    ),
    "joblib": (
        """
    import joblib
    PARALLEL = joblib.Parallel(n_jobs=2, prefer="threads")
        """,
        """
        assert PARALLEL(joblib.delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
        """,
    ),
}


def suite(source: str, body: str) -> str:
    """A module that makes its objects when it is imported, and four tests that use them."""
    head = "    import os, posix, time\n    import pytest\n    IMPORTED_BY = posix.getpid()\n"
    test = """
    @pytest.mark.parametrize("number", range(4))
    def test_it(number):
        """
    return f"{head}{source.rstrip()}\n{test}{body.strip()}\n"


@pytest.mark.parametrize("name", OWN)
def test_a_worker_has_what_was_made_at_import_as_its_own(
    pytester: pytest.Pytester, run: Runner, name: str
) -> None:
    source, body = OWN[name]
    if name in ("sqlalchemy", "pymongo", "redis", "joblib"):
        skip_without(name)
    pytester.makepyfile(suite(source, body) + "\n        assert os.getpid() != IMPORTED_BY\n")
    result = run("-W", "error")
    result.assert_outcomes(passed=4)
    assert causes(result) == []


def test_file_lock_that_a_preloaded_module_made_is_the_worker_s_own(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """It goes through two forks: from the parent to the collector, and on to the worker."""
    pytester.makepyfile(
        locks="import filelock\nLOCK = filelock.FileLock('a.lock')\n",
        test_it="""
        from locks import LOCK
        def test_it():
            with LOCK:
                assert LOCK.is_locked
        """,
    )
    for warm in ("collection", "imports"):
        result = run(f"--forkd-warm={warm}", "--forkd-preload=locks", "-o", "pythonpath=.")
        result.assert_outcomes(passed=1)


#: Objects that no fork can have as its own, and the cause that is named.
SHARED = {
    "process": (
        """
    import atexit, subprocess
    PROCESS = subprocess.Popen(["sleep", "60"])
    atexit.register(PROCESS.kill)
        """,
        """
        assert PROCESS.poll() is None
        """,
        r"process \d+ \(sleep\) was started, and would be shared by all workers",
    ),
    "process that has ended": (
        """
    import subprocess
    PROCESS = subprocess.Popen(["sh", "-c", "exit 3"])
    time.sleep(0.1)
        """,
        """
        assert PROCESS.wait(30) == 3
        """,
        r"process \d+ \(sh\) was started, and would be shared by all workers",
    ),
    "lock of multiprocessing": (
        """
    import multiprocessing
    LOCK = multiprocessing.Lock()
        """,
        """
        assert LOCK.acquire(block=False)
        time.sleep(0.05)
        LOCK.release()
        """,
        r"a lock, semaphore or event of multiprocessing exists, .* shared by all workers",
    ),
    "value of multiprocessing": (
        """
    import multiprocessing
    VALUE = multiprocessing.Value("i", 0, lock=False)
        """,
        """
        before = VALUE.value
        time.sleep(0.05)
        VALUE.value += 1
        assert VALUE.value == before + 1
        """,
        r"shared memory \(.*\) is mapped, and would be shared by all workers",
    ),
    "anonymous mmap": (
        """
    import mmap
    MEMORY = mmap.mmap(-1, 100)
        """,
        """
        before = MEMORY[0]
        time.sleep(0.05)
        MEMORY[0] += 1
        assert MEMORY[0] == before + 1
        """,
        r"shared memory \(.*\) is mapped, and would be shared by all workers",
    ),
    "queue of multiprocessing": (
        """
    import multiprocessing
    QUEUE = multiprocessing.Queue()
        """,
        """
        QUEUE.put(os.getpid())
        assert QUEUE.get(timeout=30) == os.getpid()
        """,
        r"a pipe \(descriptor \d+\) is open, .*",
    ),
    "manager of multiprocessing": (
        """
    import multiprocessing
    MANAGER = multiprocessing.Manager()
    ITEMS = MANAGER.dict()
        """,
        """
        ITEMS[number] = os.getpid()
        assert set(ITEMS.values()) == {os.getpid()}
        """,
        r"a pipe \(descriptor \d+\) is open, .*|process \d+ .* was started, .*",
    ),
    "pool of processes": (
        """
    from concurrent.futures import ProcessPoolExecutor
    POOL = ProcessPoolExecutor(1)
        """,
        """
        assert POOL.submit(abs, -1).result(30) == 1
        """,
        r"a pipe \(descriptor \d+\) is open, .*",
    ),
    "psycopg_pool": (
        """
    import atexit, psycopg_pool
    POOL = psycopg_pool.ConnectionPool("host=/nowhere", min_size=1, open=True)
    atexit.register(POOL.close)
        """,
        """
        assert not POOL.closed
        """,
        r"thread 'pool-1-.*' runs, and would be in no worker.*",
    ),
    "pymongo": (
        """
    import pymongo
    CLIENT = pymongo.MongoClient("127.0.0.1", 1, serverSelectionTimeoutMS=50)
        """,
        """
        with pytest.raises(pymongo.errors.ServerSelectionTimeoutError):
            CLIENT.admin.command("ping")
        """,
        r"thread 'pymongo_.*' runs, and would be in no worker.*",
    ),
    "grpc": (
        """
    import grpc
    CHANNEL = grpc.insecure_channel("127.0.0.1:1")
        """,
        """
        with pytest.raises(grpc.FutureTimeoutError):
            grpc.channel_ready_future(CHANNEL).result(timeout=0.05)
        """,
        r"an event loop is open, .*|\d+ native threads? .*",
    ),
    "zmq": (
        """
    import zmq
    CONTEXT = zmq.Context.instance()
        """,
        """
        assert zmq.Context.instance() is CONTEXT
        """,
        r"an event loop is open, .*",
    ),
}


@pytest.mark.skipif("sys.platform != 'linux'", reason="/proc tells what is shared")
@pytest.mark.parametrize("name", SHARED)
def test_what_a_fork_would_share_makes_each_worker_collect(
    pytester: pytest.Pytester, run: Runner, name: str
) -> None:
    source, body, cause = SHARED[name]
    if name in ("psycopg_pool", "pymongo", "grpc", "zmq"):
        skip_without(name)
    pytester.makepyfile(suite(source, body))
    result = run()
    result.assert_outcomes(passed=4)
    [said] = causes(result)
    assert re.fullmatch(cause, said)


@pytest.mark.skipif("sys.platform != 'linux'", reason="/proc tells what is shared")
def test_memory_that_is_shared_under_xdist_too_is_no_finding(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """A mapped file, and a child that has ended and been waited for."""
    pytester.makepyfile(
        suite(
            """
    import mmap, subprocess
    subprocess.run(["true"], check=True)
    with open("data", "wb") as file:
        file.write(bytes(100))
    with open("data", "r+b") as file:
        MEMORY = mmap.mmap(file.fileno(), 100)
    # mmap keeps a duplicate of the descriptor open; only the mapping is of interest here.
    os.close(max(fd for fd in range(100) if os.path.exists(f"/proc/self/fd/{fd}")))
            """,
            """
        assert MEMORY[0] == 0
            """,
        )
    )
    result = run()
    result.assert_outcomes(passed=4)
    assert causes(result) == []
