CREATE OR REPLACE FUNCTION "pq"."queue_pick"(place tid, name text, key text, lock bigint, new_lease bigint) RETURNS boolean
    LANGUAGE plpgsql
AS $names$
DECLARE
    noted text := coalesce(nullif(current_setting('pq.keys', true), ''), ',');
    found_it boolean;
BEGIN
    IF strpos(noted, ',' || lock || ',') > 0 OR NOT pg_try_advisory_xact_lock(lock) THEN
        RETURN false;
    END IF;
    INSERT INTO "pq"."queue_keys" AS busy (q_name, serial_key, lease) VALUES (name, key, coalesce(new_lease, 0))
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM FROM "pq"."queue" AS job WHERE job.ctid = place AND job.dequeued_at IS NULL FOR UPDATE SKIP LOCKED;
    found_it := FOUND;
    IF new_lease IS NULL OR NOT found_it THEN
        DELETE FROM "pq"."queue_keys" AS busy WHERE busy.q_name = name AND busy.serial_key = key;
    END IF;
    IF found_it THEN
        PERFORM set_config('pq.keys', noted || lock || ',', true);
    END IF;
    RETURN found_it;
END
$names$;

ALTER TABLE "pq"."queue" RESET (vacuum_index_cleanup);
