-- What takes pass by, and what they try in vain.

-- Where less than a page in fifty has dead rows, as behind millions of scheduled jobs, a vacuum would leave the indexes
-- alone, and takes would pass by the entries of jobs that are gone.
ALTER TABLE "pq"."queue" SET (vacuum_index_cleanup = on);

-- Takes the first job of a serialization key, if no other transaction and no lease has the key: notes it, and locks
-- the job's row. From the moment in which the key's lock is had until the transaction ends, whoever else tries the
-- key goes away, and is told of nothing. So where it comes to nothing after all, because the job was taken since the
-- statement's snapshot, the statement's time is noted: the take then looks again, or has the others look.
--
-- Whether a lease has the key is plain where each statement has a snapshot of its own, for a lease is taken under the
-- key's lock too. In a snapshot of the whole transaction only the unique index knows.
CREATE OR REPLACE FUNCTION "pq"."queue_pick"(place tid, name text, key text, lock bigint, new_lease bigint) RETURNS boolean
    LANGUAGE plpgsql
AS $names$
DECLARE
    noted text := coalesce(nullif(current_setting('pq.keys', true), ''), ',');
    is_looked_for boolean := new_lease IS NULL AND current_setting('transaction_isolation') = 'read committed';
    is_free boolean;
    found_it boolean := false;
BEGIN
    IF strpos(noted, ',' || lock || ',') > 0 OR NOT pg_try_advisory_xact_lock(lock) THEN
        RETURN false;
    END IF;
    IF is_looked_for THEN
        is_free := NOT EXISTS (SELECT FROM "pq"."queue_keys" AS busy WHERE busy.q_name = name AND busy.serial_key = key);
    ELSE
        INSERT INTO "pq"."queue_keys" AS busy (q_name, serial_key, lease) VALUES (name, key, coalesce(new_lease, 0))
        ON CONFLICT DO NOTHING;
        is_free := FOUND;
    END IF;
    IF is_free THEN
        PERFORM FROM "pq"."queue" AS job WHERE job.ctid = place AND job.dequeued_at IS NULL FOR UPDATE SKIP LOCKED;
        found_it := FOUND;
        IF NOT is_looked_for AND (new_lease IS NULL OR NOT found_it) THEN
            DELETE FROM "pq"."queue_keys" AS busy WHERE busy.q_name = name AND busy.serial_key = key;
        END IF;
    END IF;
    IF found_it THEN
        noted := set_config('pq.keys', noted || lock || ',', true);
    ELSE
        noted := set_config('pq.missed', statement_timestamp()::text, true);
    END IF;
    RETURN found_it;
END
$names$;
