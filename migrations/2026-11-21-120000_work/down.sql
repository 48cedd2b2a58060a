-- Jobs under a lease go back into the line, so that none is lost on the way down.
INSERT INTO "pq"."queue" (id, q_name, data, enqueued_at, schedule_at, expected_at, priority, attempt)
SELECT held.job, lease.q_name, held.data::json, held.enqueued_at, held.schedule_at, held.expected_at, held.priority,
    held.attempt
FROM "pq"."queue_leases" AS lease,
    unnest(lease.jobs, lease.data, lease.enqueued_at, lease.schedule_at, lease.expected_at, lease.priority,
        lease.attempt) AS held (job, data, enqueued_at, schedule_at, expected_at, priority, attempt)
WHERE NOT EXISTS (SELECT FROM "pq"."queue_settled" AS done WHERE done.lease = lease.id AND done.job = held.job);

DROP TRIGGER "queue_claim_unique" ON "pq"."queue";
DROP FUNCTION "pq"."queue_put_unique"(text, text, text, bigint, json, timestamptz, timestamptz, integer, text);
DROP FUNCTION "pq"."queue_claim_unique"();
DROP FUNCTION "pq"."queue_is_live"(bigint, bigint);
DROP FUNCTION "pq"."queue_pick"(tid, text, text, bigint, bigint);

DROP INDEX "pq"."queue_archive_old";
DELETE FROM "pq"."queue_archive" WHERE outcome <> 'dead';
ALTER TABLE "pq"."queue_archive"
    DROP COLUMN serial_key,
    DROP COLUMN unique_key,
    DROP COLUMN result,
    DROP CONSTRAINT "queue_archive_outcome_check",
    ADD CONSTRAINT "queue_archive_outcome_check" CHECK (outcome IN ('dead'));

DROP TABLE "pq"."queue_unique";
DROP TABLE "pq"."queue_keys";
DROP TABLE "pq"."queue_settled";
DROP SEQUENCE "pq"."queue_lease_tokens";
DROP TABLE "pq"."queue_leases";

DROP INDEX "pq"."queue_keyed_line";
DROP INDEX "pq"."queue_keyed";
DROP INDEX "pq"."queue_ready";
ALTER TABLE "pq"."queue"
    DROP COLUMN serial_key,
    DROP COLUMN unique_key,
    DROP COLUMN error;
CREATE INDEX "queue_ready" ON "pq"."queue"
    (q_name, (-priority::bigint), (coalesce(expected_at, 'infinity'::timestamptz)), id)
    WHERE dequeued_at IS NULL AND schedule_at IS NULL;
