"""Orders from the example application by HTTP while it is killed, stopped and cut off from its database, and counts.

Every order that was answered with 201 must exist, and every order must have exactly one parcel.
"""

import atexit
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

SHOP, PSQL, SERVER = sys.argv[1:]
DATABASE = os.environ["DATABASE_URL"]
ADDRESS = "127.0.0.1:" + str(20000 + os.getpid() % 10000)
CUSTOMERS = 8
STOP_SECONDS = 3
# Nothing here takes as long on a machine that is not stuck.
PATIENCE = 60


def sql(query, url=DATABASE):
    done = subprocess.run(
        [PSQL, "-v", "ON_ERROR_STOP=1", "-qXAt", "-c", query, url], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def until(what, holds):
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"waited {PATIENCE} s in vain: {what}")
        time.sleep(0.02)


def get_health():
    try:
        with urllib.request.urlopen(f"http://{ADDRESS}/health", timeout=PATIENCE) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def start():
    shop = subprocess.Popen(
        [SHOP], env={**os.environ, "SHOP_ADDRESS": ADDRESS, "SHOP_STOP_SECONDS": str(STOP_SECONDS)}
    )
    # If a check below fails, nothing stays behind.
    atexit.register(shop.kill)

    def is_healthy():
        if shop.poll() is not None:
            sys.exit(f"the shop ended with status {shop.returncode} instead of opening")
        return get_health() == 200

    until("the shop is healthy", is_healthy)
    return shop


class Customers:
    """Threads that order until they are closed, and note the ids that were answered."""

    def __init__(self):
        self.ids, self.unanswered, self.closed = [], 0, False
        self.threads = [threading.Thread(target=self.order, daemon=True) for _ in range(CUSTOMERS)]
        for thread in self.threads:
            thread.start()

    def order(self):
        order = json.dumps({"item": "apple", "quantity": 3}).encode()
        headers = {"Content-Type": "application/json"}
        while not self.closed:
            request = urllib.request.Request(f"http://{ADDRESS}/orders", order, headers)
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                    assert answer.status == 201, answer.status
                    self.ids.append(json.load(answer)["id"])
            except (OSError, ValueError, http.client.HTTPException):
                # Nobody listens, or the answer was cut off: the order may exist or not.
                self.unanswered += 1
                time.sleep(0.02)

    def wait_for(self, more):
        wanted = len(self.ids) + more
        until(f"{more} more orders are answered", lambda: len(self.ids) >= wanted)

    def close(self):
        self.closed = True
        for thread in self.threads:
            thread.join()


@contextmanager
def blocked_handlers():
    """Keeps handlers from writing parcels, and yields when some of them wait for that."""
    lock = subprocess.Popen([PSQL, "-qXAt", DATABASE], stdin=subprocess.PIPE, text=True)
    lock.stdin.write("BEGIN; LOCK TABLE parcel;\n")
    lock.stdin.flush()
    waiting = """SELECT bool_or(granted AND mode = 'AccessExclusiveLock') AND count(*) FILTER (WHERE NOT granted) >= 2
        FROM pg_locks WHERE relation = 'parcel'::regclass"""
    until("handlers wait for the table", lambda: sql(waiting) == "t")
    yield
    lock.stdin.close()
    lock.wait()


def stop(shop, by="SIGTERM"):
    began = time.monotonic()
    if by == "SIGTERM":
        shop.send_signal(signal.SIGTERM)
    else:
        sql("UPDATE pq.queue_workers SET stop = 'finish'")
    status = shop.wait(timeout=PATIENCE)
    assert status == 0, f"after {by} the shop ended with status {status}"
    return time.monotonic() - began


def main():
    shop = start()
    customers = Customers()

    customers.wait_for(100)
    with blocked_handlers():
        shop.kill()
        shop.wait()
    shop = start()
    customers.wait_for(100)
    print("killed while handlers ran, and started again")

    print(f"stopped by SIGTERM while orders came in, within {stop(shop):.1f} s")
    shop = start()
    customers.wait_for(100)
    print(f"stopped by a request of pq stop, within {stop(shop, by='pq stop'):.1f} s")
    shop = start()
    customers.wait_for(100)

    with blocked_handlers():
        took = stop(shop)
    assert took >= STOP_SECONDS * 0.9, f"the stop did not wait for its handlers: {took:.1f} s"
    assert took < STOP_SECONDS + 10, f"the stop took {took:.1f} s"
    print(f"stopped by SIGTERM although handlers hung, within {took:.1f} s")
    shop = start()

    name = sql("SELECT current_database()")
    sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", SERVER)
    sql(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'", SERVER)
    until("the shop is unhealthy without its database", lambda: get_health() == 503)
    sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true", SERVER)
    until("the shop is healthy again", lambda: get_health() == 200)
    customers.wait_for(100)
    customers.close()
    print("cut off from its database, and connected again")

    unfinished = "SELECT (SELECT count(*) FROM pq.queue) + (SELECT count(*) FROM pq.queue_leases)"
    until("all orders are worked", lambda: sql(unfinished) == "0")
    stop(shop)

    ids = set(customers.ids)
    exist = {int(line) for line in sql("SELECT id FROM shop_order").splitlines()}
    lost = len(ids - exist)
    parcels = "SELECT o.id, count(p.id) FROM shop_order o LEFT JOIN parcel p ON p.order_id = o.id GROUP BY o.id"
    counts = [int(line.split("|")[1]) for line in sql(parcels).splitlines()]
    without, twice = counts.count(0), sum(count > 1 for count in counts)
    print(
        f"{len(ids)} orders confirmed, {len(exist)} committed, {customers.unanswered} requests unanswered; "
        f"lost {lost}, not processed {without}, processed twice {twice}"
    )
    assert len(ids) == len(customers.ids), "an id was answered twice"
    if lost or without or twice:
        sys.exit(1)


main()
