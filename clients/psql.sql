-- Puts a job by psql, in the transaction that inserts an order. Both exist after the commit, and neither after a
-- rollback.
BEGIN;
INSERT INTO client_order VALUES ('psql', 1);
SELECT pq.queue_call('shop', 'shop.mail', kwargs => '{"to": "psql-1@example.com", "subject": "Your order"}',
    max_retries => 5, backoff => 'exponential 1s 1h') AS job;
COMMIT;

BEGIN;
INSERT INTO client_order VALUES ('psql', 2);
SELECT pq.queue_call('shop', 'shop.mail', kwargs => '{"to": "psql-2@example.com", "subject": "Your order"}') AS job;
ROLLBACK;
