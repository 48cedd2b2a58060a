"""Tests that Python's pq and this pq put into and take from one table.

ci/python sets up the interpreter and runs it under with-postgres.
"""

import json
import os
import re
import subprocess
import threading
import time
import unittest
import uuid
from datetime import datetime, timedelta

import psycopg2
from pq import PQ
from pq.tasks import PQ as TaskPQ

SERVER = os.environ["PQ_TEST_DATABASE_URL"]
COMMAND = os.path.abspath("target/debug/pq")
TASKS = os.path.abspath("target/debug/examples/tasks")

# The longest time, in seconds, that a test waits for something that must happen.
TIMEOUT = 20

NAMES = {
    "plain": "apples",
    "spaces and upper case": "Red Apples, $1 %% each",
    "letters of other alphabets": "яблоки 🍎",
    "63 bytes": "x" * 63,
    "64 bytes": "x" * 64,
    "80 bytes in 40 characters": "ж" * 40,
    "280 bytes in 70 characters": "🍎" * 70,
}


def rust(*words, text=None):
    """Runs the `pq` command and returns its output and exit status."""
    done = subprocess.run(
        [COMMAND, *words], input=text, capture_output=True, encoding="utf-8",
        env={**os.environ, "PQ_URL": Base.url}, timeout=2 * TIMEOUT,
    )
    if done.returncode > 1:
        raise AssertionError(done.stderr)
    return done.stdout, done.returncode


def tasks(*words):
    """Runs the example `tasks` and returns its output."""
    done = subprocess.run([TASKS, *words], capture_output=True, encoding="utf-8",
                          env={**os.environ, "PQ_URL": Base.url}, timeout=2 * TIMEOUT)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout.strip()


class Base(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.database = "python_" + uuid.uuid4().hex
        cls.admin = psycopg2.connect(SERVER)
        cls.admin.autocommit = True
        cls.admin.cursor().execute("CREATE DATABASE " + cls.database)
        Base.url = re.sub(r"(://[^/]*)/[^?]*", r"\1/" + cls.database, SERVER)

    @classmethod
    def tearDownClass(cls):
        cls.admin.cursor().execute("DROP DATABASE " + cls.database + " WITH (FORCE)")
        cls.admin.close()

    def setUp(self):
        rust("migrate")
        self.conn = psycopg2.connect(self.url)
        self.pq = PQ(self.conn, schema="pq", table="queue")
        self.sql("TRUNCATE pq.queue")

    def tearDown(self):
        self.conn.close()

    def sql(self, statement, *values):
        with psycopg2.connect(self.url) as conn, conn.cursor() as cursor:
            cursor.execute(statement, values)
            rows = cursor.fetchall() if cursor.description else None
        conn.close()
        return rows


class Interop(Base):
    def test_rust_gets_the_bytes_that_python_puts(self):
        for data in [{}, [], None, 0, "", {"b": 1, "a": [1.5, "é 🍎 \u0000"]}, "\ud800", 10**40, [[[]]]]:
            self.pq["apples"].put(data)
            line, _ = rust("get", "apples")
            self.assertEqual(line, json.dumps(data) + "\n")

    def test_python_gets_what_rust_puts(self):
        for data in [{}, [], 0, "", {"b": 1, "a": ["é 🍎", "\u0000"]}, "\ud800", 10**40]:
            rust("put", "apples", text=json.dumps(data))
            self.assertEqual(self.pq["apples"].get(block=False).data, data)

    def test_all_queue_names_work_in_both_directions(self):
        for what, name in NAMES.items():
            with self.subTest(what):
                self.pq[name].put(1)
                self.assertEqual(rust("get", name), ("1\n", 0))
                rust("put", name, text="2")
                self.assertEqual(self.pq[name].get(block=False).data, 2)

    def test_a_put_of_rust_wakes_a_waiting_python(self):
        for what, name in NAMES.items():
            with self.subTest(what):
                self.wake_python(name, lambda: rust("put", name, text='"wake"'))

    def wake_python(self, name, put):
        conn = psycopg2.connect(self.url)
        queue, got = PQ(conn, schema="pq", table="queue")[name], []

        def wait():
            began = time.monotonic()
            got.append((queue.get(timeout=TIMEOUT), time.monotonic() - began))

        waiter = threading.Thread(target=wait)
        waiter.start()
        # Python executes LISTEN in the transaction that finds no job, and then its connection is idle.
        self.until("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND query = 'COMMIT' AND state = 'idle'",
                   conn.get_backend_pid())
        put()
        waiter.join(2 * TIMEOUT)
        conn.close()
        (job, waited), = got
        self.assertEqual(job.data, "wake")
        self.assertLess(waited, TIMEOUT, "the wait ended by polling, not by the notification")

    def until(self, statement, *values):
        deadline = time.monotonic() + TIMEOUT
        while not self.sql(statement, *values):
            self.assertLess(time.monotonic(), deadline, "timed out waiting for " + statement)
            time.sleep(0.01)

    def test_a_put_of_python_wakes_a_waiting_rust(self):
        for what, name in NAMES.items():
            with self.subTest(what):
                waiter = subprocess.Popen([COMMAND, "get", name, "--wait", str(TIMEOUT)], stdout=subprocess.PIPE,
                                          env={**os.environ, "PQ_URL": self.url})
                self.until("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND datname = %s",
                           self.database)
                self.pq[name].put("wake")
                self.assertEqual(waiter.communicate(timeout=2 * TIMEOUT)[0], b'"wake"\n')

    def test_neither_takes_a_job_before_it_is_due(self):
        self.pq["apples"].put("python", schedule_at="1h")
        rust("put", "apples", "--schedule-at", "1h", text='"rust"')
        self.assertEqual(rust("get", "apples"), ("", 1))
        self.assertIsNone(self.pq["apples"].get(block=False))
        self.assertEqual(len(self.pq["apples"]), 0)

    def test_a_due_job_is_taken_by_either(self):
        past = datetime.utcnow() - timedelta(seconds=5)
        self.pq["apples"].put("python", schedule_at=past)
        self.assertEqual(rust("get", "apples"), ('"python"\n', 0))
        rust("put", "apples", "--schedule-at", "2001-01-01T00:00:00Z", text='"rust"')
        self.assertEqual(self.pq["apples"].get(block=False).data, "rust")

    def test_both_order_by_expected_at(self):
        for get in [lambda: rust("get", "apples")[0].strip(), lambda: json.dumps(self.pq["apples"].get(block=False).data)]:
            self.pq["apples"].put(3)
            self.pq["apples"].put(2, expected_at="2h")
            rust("put", "apples", "--expected-at", "1h", text="1")
            self.assertEqual([get() for _ in range(3)], ["1", "2", "3"])

    def test_times_are_equal_in_both_languages(self):
        rust("put", "apples", "--schedule-at", "2001-02-03T04:05:06.5+02:00", text="1")
        self.assertEqual(self.pq["apples"].get(block=False).schedule_at, datetime(2001, 2, 3, 2, 5, 6, 500000))

    def test_a_job_that_python_took_is_not_taken_again(self):
        self.pq["apples"].put(1)
        self.assertEqual(self.pq["apples"].get(block=False).data, 1)
        self.assertEqual(rust("get", "apples"), ("", 1))
        self.assertEqual(self.sql("SELECT count(*) FROM pq.queue")[0][0], 1)

    def test_a_job_that_python_holds_is_skipped_and_returned_by_rollback(self):
        self.pq["apples"].put(1)
        self.pq["apples"].put(2)
        with self.assertRaises(ZeroDivisionError):
            with self.pq["apples"]:
                self.assertEqual(self.pq["apples"].get(block=False).data, 1)
                self.assertEqual(rust("get", "apples"), ("2\n", 0))
                raise ZeroDivisionError
        self.assertEqual(rust("get", "apples"), ("1\n", 0))

    def test_a_job_that_rust_holds_is_skipped_and_returned_by_rollback(self):
        rust("put", "apples", "--lines", text="1\n2\n")
        # A take in Rust deletes the row like this, and its transaction stays open.
        with psycopg2.connect(self.url) as conn, conn.cursor() as cursor:
            cursor.execute("DELETE FROM pq.queue WHERE data::text = '1'")
            self.assertEqual(self.pq["apples"].get(block=False).data, 2)
            conn.rollback()
        conn.close()
        self.assertEqual(self.pq["apples"].get(block=False).data, 1)

    def test_count_and_clear(self):
        rust("put", "apples", "--lines", text="1\n2\n")
        self.assertEqual(len(self.pq["apples"]), 2)
        self.pq["apples"].clear()
        self.assertEqual(rust("get", "apples"), ("", 1))

    def test_pickles_work_in_both_directions(self):
        data = {"b": [1, 2.5, None, True], "a": "é 🍎", "big": 10**30}
        self.pq["apples/pickle"].put(data)
        line, _ = rust("get", "apples", "--codec", "pickle")
        self.assertEqual(json.loads(line), data)
        rust("put", "apples", "--codec", "pickle", text=json.dumps(data))
        self.assertEqual(self.pq["apples/pickle"].get(block=False).data, data)

    def test_a_pickle_with_an_object_is_dead_and_executes_nothing(self):
        self.pq["apples/pickle"].put(datetime(2001, 1, 1))
        self.pq["apples/pickle"].put("good")
        self.assertEqual(rust("get", "apples", "--codec", "pickle"), ('"good"\n', 0))
        (error,), = self.sql("SELECT error FROM pq.queue_archive WHERE outcome = 'dead'")
        self.assertIn("datetime", error)
        self.sql("TRUNCATE pq.queue_archive")

    def test_create_of_python_keeps_the_table_usable(self):
        for _ in range(2):
            PQ(self.conn, schema="pq", table="queue").create()
        rust("put", "apples", text="1")
        self.assertEqual(self.pq["apples"].get(block=False).data, 1)
        self.pq["apples"].put(2)
        self.assertEqual(rust("get", "apples"), ("2\n", 0))
        self.wake_python("woken", lambda: rust("put", "woken", text='"wake"'))
        triggers = [name for name, in self.sql(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'pq.queue'::regclass AND NOT tgisinternal ORDER BY 1")]
        self.assertEqual(triggers, ["pq_insert", "queue_claim_unique", "queue_notify"])
        rust("migrate")
        # Removes the objects that Python created.
        self.sql("DROP FUNCTION pq_notify() CASCADE; DROP INDEX pq.priority_idx_, pq.priority_idx_no_")


class Tasks(Base):
    """One queue of tasks that exist in both languages."""

    def setUp(self):
        super().setUp()
        tasks("work")
        self.sql("TRUNCATE ran, pq.queue_archive")
        self.shop = TaskPQ(self.conn, schema="pq", table="queue")["shop"]
        self.shop.handler_registry.clear()
        self.seen = seen = []

        def add(job_id, a, b):
            seen.append(("add", job_id, a + b))

        def mail(job_id, to=None, subject=None):
            seen.append(("mail", job_id, to, subject))

        def flaky(job_id, wanted):
            seen.append(("flaky", job_id, wanted))
            raise ValueError("it is flaky")

        for function in add, mail, flaky:
            function.__module__, function.__qualname__ = "shop", function.__name__
        self.add = self.shop.task()(add)
        self.mail = self.shop.task(max_retries=1, retry_in="10s")(mail)
        self.flaky = self.shop.task(max_retries=2, retry_in=None)(flaky)

    def ran(self):
        return self.sql("SELECT task, job, what FROM ran ORDER BY job, what")

    def test_rust_runs_calls_of_python(self):
        one, two = self.add(2, 3), self.mail(to="a@é.com", subject="it")
        report = tasks("work")
        self.assertIn("done: 2", report)
        self.assertEqual(self.ran(), [("add", one, "5"), ("mail", two, "a@é.com: it")])

    def test_python_runs_calls_of_rust(self):
        one = int(tasks("call", "shop.add", "[2, 3]"))
        two = int(tasks("call", "shop.mail", '{"to": "a@é.com", "subject": "it"}'))
        self.shop.work(burst=True)
        self.assertEqual(self.seen, [("add", one, 5), ("mail", two, "a@é.com", "it")])

    def test_python_runs_calls_by_sql(self):
        (one,), = self.sql("SELECT pq.queue_call('shop', 'shop.mail', '[\"a@é.com\"]', '{\"subject\": \"it\"}')")
        self.sql("SELECT pq.queue_call('shop', 'shop.flaky', '[-1]', max_retries => 2, backoff => '0s')")
        with self.assertLogs("pq.tasks"):
            self.shop.work(burst=True)
        self.assertEqual(self.seen[0], ("mail", one, "a@é.com", "it"))
        self.assertEqual([name for name, *_ in self.seen[1:]], ["flaky"] * 3)

    def test_rust_follows_the_retries_of_a_python_call(self):
        job = self.flaky(-1)
        self.assertIn("failed: 3", tasks("work"))
        self.assertEqual(self.ran(), [("flaky", job, "attempt %d" % n) for n in (1, 2, 3)])
        (data,), = self.sql("SELECT data FROM pq.queue_archive WHERE outcome = 'dead'")
        self.assertEqual((data["retried"], data["max_retries"], data["args"]), (2, 2, [-1]))

    def test_python_follows_the_retries_of_a_rust_call(self):
        tasks("call", "shop.flaky", "[-1]", "2")
        with self.assertLogs("pq.tasks"):
            self.shop.work(burst=True)
        self.assertEqual([name for name, *_ in self.seen], ["flaky"] * 3)
        # Python's retries keep keys that Python does not know.
        rows = [data for data, in self.sql("SELECT data FROM pq.queue WHERE q_name = 'shop' ORDER BY id")]
        self.assertEqual([data["retried"] for data in rows], [0, 1, 2])
        self.assertEqual({json.dumps(data["backoff"]) for data in rows}, {json.dumps(rows[0]["backoff"])})

    def test_each_counts_the_failures_of_the_other(self):
        tasks("call", "shop.flaky", "[-1]", "2")
        self.assertIn("failed: 1", tasks("work", "1"))
        data = self.shop.get(block=False)
        self.assertEqual(data.data["retried"], 1)
        with self.assertLogs("pq.tasks"):
            self.shop.perform(data)
        self.assertIn("dead: 1", tasks("work"))
        self.assertEqual((len(self.ran()), len(self.seen)), (2, 1))

    def test_concurrent_workers_run_each_job_once(self):
        jobs = [self.add(n, 0) for n in range(300)]
        workers = [subprocess.Popen([TASKS, "work"], stdout=subprocess.DEVNULL,
                                    env={**os.environ, "PQ_URL": self.url}) for _ in range(2)]
        self.shop.work(burst=True)
        for worker in workers:
            self.assertEqual(worker.wait(2 * TIMEOUT), 0)
        done = [job for _, job, _ in self.ran()] + [job for _, job, _ in self.seen]
        self.assertEqual(sorted(done), jobs)

    def test_an_unknown_task_is_left_to_others_without_affecting_them(self):
        self.shop.put({"function": "no.such", "args": [], "kwargs": {}, "retried": 0, "retry_in": "10s",
                       "max_retries": 0})
        job = self.add(1, 1)
        report = tasks("work")
        self.assertIn("done: 1", report)
        self.assertIn("dead: 0", report)
        self.assertEqual(self.ran(), [("add", job, "2")])
        self.assertEqual(self.sql("SELECT attempt, error ~ 'no.such' FROM pq.queue"), [(0, True)])


if __name__ == "__main__":
    unittest.main()
