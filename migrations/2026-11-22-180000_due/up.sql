-- A long backlog of scheduled jobs that are due.

-- Scheduled jobs in the order of the line. Where few are due they are found by their time and sorted; where very many
-- are, each take would read them all, so it walks this index and reads the first.
CREATE INDEX "queue_scheduled_line" ON "pq"."queue"
    (q_name, (-priority::bigint), (coalesce(expected_at, 'infinity'::timestamptz)), id)
    WITH (deduplicate_items = off)
    WHERE dequeued_at IS NULL AND schedule_at IS NOT NULL;
