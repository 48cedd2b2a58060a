"""Python's pq and the `pq` command on one table, both ways.

Run by ci/python, which sets up the interpreter, below a server of with-postgres.
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

SERVER = os.environ["PQ_TEST_DATABASE_URL"]
COMMAND = os.path.abspath("target/debug/pq")

# How long something that must happen may take. Nothing is measured by it.
PATIENCE = 20

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
    """Runs the command and gives what it printed, and its exit status."""
    done = subprocess.run(
        [COMMAND, *words], input=text, capture_output=True, encoding="utf-8",
        env={**os.environ, "PQ_URL": Interop.url}, timeout=2 * PATIENCE,
    )
    if done.returncode > 1:
        raise AssertionError(done.stderr)
    return done.stdout, done.returncode


class Interop(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.database = "python_" + uuid.uuid4().hex
        cls.admin = psycopg2.connect(SERVER)
        cls.admin.autocommit = True
        cls.admin.cursor().execute("CREATE DATABASE " + cls.database)
        Interop.url = re.sub(r"(://[^/]*)/[^?]*", r"\1/" + cls.database, SERVER)

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

    def test_rust_gets_byte_for_byte_what_python_puts(self):
        for data in [{}, [], None, 0, "", {"b": 1, "a": [1.5, "é 🍎 \u0000"]}, "\ud800", 10**40, [[[]]]]:
            self.pq["apples"].put(data)
            line, _ = rust("get", "apples")
            self.assertEqual(line, json.dumps(data) + "\n")

    def test_python_gets_what_rust_puts(self):
        for data in [{}, [], 0, "", {"b": 1, "a": ["é 🍎", "\u0000"]}, "\ud800", 10**40]:
            rust("put", "apples", text=json.dumps(data))
            self.assertEqual(self.pq["apples"].get(block=False).data, data)

    def test_any_name_goes_both_ways(self):
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
            got.append((queue.get(timeout=PATIENCE), time.monotonic() - began))

        waiter = threading.Thread(target=wait)
        waiter.start()
        # Python listens in the transaction that found nothing, and then its connection is idle.
        self.until("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND query = 'COMMIT' AND state = 'idle'",
                   conn.get_backend_pid())
        put()
        waiter.join(2 * PATIENCE)
        conn.close()
        (job, waited), = got
        self.assertEqual(job.data, "wake")
        self.assertLess(waited, PATIENCE, "it was not woken, it polled")

    def until(self, statement, *values):
        deadline = time.monotonic() + PATIENCE
        while not self.sql(statement, *values):
            self.assertLess(time.monotonic(), deadline, "it never came to " + statement)
            time.sleep(0.01)

    def test_a_put_of_python_wakes_a_waiting_rust(self):
        for what, name in NAMES.items():
            with self.subTest(what):
                waiter = subprocess.Popen([COMMAND, "get", name, "--wait", str(PATIENCE)], stdout=subprocess.PIPE,
                                          env={**os.environ, "PQ_URL": self.url})
                self.until("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND datname = %s",
                           self.database)
                self.pq[name].put("wake")
                self.assertEqual(waiter.communicate(timeout=2 * PATIENCE)[0], b'"wake"\n')

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

    def test_expected_at_orders_both(self):
        for get in [lambda: rust("get", "apples")[0].strip(), lambda: json.dumps(self.pq["apples"].get(block=False).data)]:
            self.pq["apples"].put(3)
            self.pq["apples"].put(2, expected_at="2h")
            rust("put", "apples", "--expected-at", "1h", text="1")
            self.assertEqual([get() for _ in range(3)], ["1", "2", "3"])

    def test_times_are_the_same_instants(self):
        rust("put", "apples", "--schedule-at", "2001-02-03T04:05:06.5+02:00", text="1")
        self.assertEqual(self.pq["apples"].get(block=False).schedule_at, datetime(2001, 2, 3, 2, 5, 6, 500000))

    def test_what_python_has_taken_is_never_taken_again(self):
        self.pq["apples"].put(1)
        self.assertEqual(self.pq["apples"].get(block=False).data, 1)
        self.assertEqual(rust("get", "apples"), ("", 1))
        self.assertEqual(self.sql("SELECT count(*) FROM pq.queue")[0][0], 1)

    def test_what_python_holds_is_passed_over_and_comes_back(self):
        self.pq["apples"].put(1)
        self.pq["apples"].put(2)
        with self.assertRaises(ZeroDivisionError):
            with self.pq["apples"]:
                self.assertEqual(self.pq["apples"].get(block=False).data, 1)
                self.assertEqual(rust("get", "apples"), ("2\n", 0))
                raise ZeroDivisionError
        self.assertEqual(rust("get", "apples"), ("1\n", 0))

    def test_what_rust_holds_is_passed_over_by_python_and_comes_back(self):
        rust("put", "apples", "--lines", text="1\n2\n")
        # What a take of Rust's does to the row, for as long as its transaction is open.
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

    def test_pickles_go_both_ways(self):
        data = {"b": [1, 2.5, None, True], "a": "é 🍎", "big": 10**30}
        self.pq["apples/pickle"].put(data)
        line, _ = rust("get", "apples", "--codec", "pickle")
        self.assertEqual(json.loads(line), data)
        rust("put", "apples", "--codec", "pickle", text=json.dumps(data))
        self.assertEqual(self.pq["apples/pickle"].get(block=False).data, data)

    def test_an_object_in_a_pickle_goes_dead_and_runs_nothing(self):
        self.pq["apples/pickle"].put(datetime(2001, 1, 1))
        self.pq["apples/pickle"].put("good")
        self.assertEqual(rust("get", "apples", "--codec", "pickle"), ('"good"\n', 0))
        (error,), = self.sql("SELECT error FROM pq.queue_archive WHERE outcome = 'dead'")
        self.assertIn("datetime", error)
        self.sql("TRUNCATE pq.queue_archive")

    def test_pythons_create_takes_nothing_away(self):
        for _ in range(2):
            PQ(self.conn, schema="pq", table="queue").create()
        rust("put", "apples", text="1")
        self.assertEqual(self.pq["apples"].get(block=False).data, 1)
        self.pq["apples"].put(2)
        self.assertEqual(rust("get", "apples"), ("2\n", 0))
        self.wake_python("woken", lambda: rust("put", "woken", text='"wake"'))
        triggers = [name for name, in self.sql(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'pq.queue'::regclass AND NOT tgisinternal ORDER BY 1")]
        self.assertEqual(triggers, ["pq_insert", "queue_notify"])
        rust("migrate")
        # What Python made besides is its own; without it, the table is as it was.
        self.sql("DROP FUNCTION pq_notify() CASCADE; DROP INDEX pq.priority_idx_, pq.priority_idx_no_")


if __name__ == "__main__":
    unittest.main()
