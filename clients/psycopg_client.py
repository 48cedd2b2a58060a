"""Puts a job by psycopg, in the transaction that inserts an order."""

import os

import psycopg
from psycopg.types.json import Json


def order(conn, number, is_paid):
    """Inserts an order with the job that mails it. Both exist after the commit, and neither after a rollback."""
    with conn.transaction():
        conn.execute("INSERT INTO client_order VALUES ('psycopg', %s)", [number])
        mail = {"to": f"psycopg-{number}@example.com", "subject": "Your order"}
        (job,) = conn.execute(
            "SELECT pq.queue_call('shop', 'shop.mail', kwargs => %s, max_retries => 5, backoff => 'exponential 1s 1h')",
            [Json(mail)],
        ).fetchone()
        print(f"order {number} has job {job}")
        if not is_paid:
            raise psycopg.Rollback


with psycopg.connect(os.environ["PQ_URL"]) as conn:
    order(conn, 1, is_paid=True)
    order(conn, 2, is_paid=False)
