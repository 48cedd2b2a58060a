-- Drops every object of pq and deletes all jobs. Without CASCADE it fails if other objects depend on the tables.
DROP FUNCTION "pq"."queue_take_limited"(text, integer, bigint, bigint, bigint, timestamptz, bigint);
DROP TABLE "pq"."queue_waits";
DROP TABLE "pq"."queue_notes";
DROP TABLE "pq"."queue_audit";
DROP TABLE "pq"."queue_cron";
DROP TABLE "pq"."queue_counters";
DROP TABLE "pq"."queue_workers";
DROP TABLE "pq"."queue_buckets";
DROP TABLE "pq"."queue_places";
DROP TABLE "pq"."queue_controls";
DROP TABLE "pq"."queue_unique";
DROP TABLE "pq"."queue_keys";
DROP TABLE "pq"."queue_signals";
DROP TABLE "pq"."queue_steps";
DROP TABLE "pq"."queue_settled";
DROP TABLE "pq"."queue_leases";
DROP SEQUENCE "pq"."queue_lease_tokens";
DROP TABLE "pq"."queue_archive";
DROP TABLE "pq"."queue";
DROP FUNCTION "pq"."queue_notify"();
DROP FUNCTION "pq"."queue_notify_end"();
DROP FUNCTION "pq"."queue_refuse_hidden_controls"();
DROP FUNCTION "pq"."queue_signal"(bigint, text, json);
DROP FUNCTION "pq"."queue_send_signal"(bigint, text, json);
DROP FUNCTION "pq"."queue_hold_lease"(bigint, bigint, timestamptz);
DROP FUNCTION "pq"."queue_call"(
    text, text, json, json, timestamptz, interval, timestamptz, interval, integer, text, text, text, integer, text,
    interval, interval, json, text[], json, text, integer, bigint[], bigint[], bigint, boolean);
DROP FUNCTION "pq"."queue_put_workflow"(json);
DROP FUNCTION "pq"."queue_workflow_data"(json);
DROP FUNCTION "pq"."queue_check_members"(json, jsonb);
DROP FUNCTION "pq"."queue_call_data"(text, json, json, integer, text, interval, interval);
DROP FUNCTION "pq"."queue_limit"(
    text, integer, integer, integer, integer, integer, integer, interval, text, boolean, integer);
DROP FUNCTION "pq"."queue_put"(
    text, json, timestamptz, interval, timestamptz, interval, integer, text, text, text, json, text[], json, text,
    integer, bigint[], bigint[], bigint, boolean);
DROP FUNCTION "pq"."queue_put_job"(
    text, json, timestamptz, interval, timestamptz, interval, integer, text, text, text, json, text[], json, text,
    integer, bigint[], bigint[], bigint, boolean, jsonb);
DROP FUNCTION "pq"."queue_put_unique"(
    text, text, text, bigint, json, timestamptz, timestamptz, integer, text, jsonb);
DROP FUNCTION "pq"."queue_claim_unique"();
DROP FUNCTION "pq"."queue_try_claim_unique"(text, text, bigint);
DROP FUNCTION "pq"."queue_is_live"(bigint, bigint);
DROP FUNCTION "pq"."queue_is_partly_settled"(bigint);
DROP FUNCTION "pq"."queue_cancel_leased"(bigint, text);
DROP FUNCTION "pq"."queue_return"(bigint, bigint, text, text);
DROP FUNCTION "pq"."queue_keeps_unique"(text, text, bigint, bigint);
DROP FUNCTION "pq"."queue_lock_keyed_job"(tid, text, text, bigint, bigint);
DROP FUNCTION "pq"."queue_pick_limited"(text, integer, bigint, jsonb, bigint, timestamptz, bigint, jsonb);
DROP FUNCTION "pq"."queue_pick_in_turn"(text, integer, jsonb, boolean, jsonb);
DROP FUNCTION "pq"."queue_look_due"(text, timestamptz, integer, jsonb, boolean);
DROP FUNCTION "pq"."queue_first_of_keys"(text, text, integer);
DROP FUNCTION "pq"."queue_look_behind"(text, bigint, bigint, integer, integer, jsonb);
DROP FUNCTION "pq"."queue_groups_in_turn"(text, bigint, text, integer, text[]);
DROP FUNCTION "pq"."queue_lock_turns"(text);
DROP FUNCTION "pq"."queue_is_first_of_key"(text, text, bigint, timestamptz, bigint, jsonb);
DROP FUNCTION "pq"."queue_lock_places"(text, text, integer, integer, integer);
DROP FUNCTION "pq"."queue_lock_places_of_groups"(text, text[], integer[], integer[]);
DROP FUNCTION "pq"."queue_lock_first_jobs"(text, integer, jsonb, boolean);
DROP FUNCTION "pq"."queue_lock_bucket"(text, text, jsonb);
DROP FUNCTION "pq"."queue_set_limits"(text, jsonb);
DROP FUNCTION "pq"."queue_correct_cost"(text, bigint, bigint, timestamptz, integer, text, bigint, bigint);

-- Drops the schema if the migration created it and nothing else is in it.
DO $names$
DECLARE
    path text := current_setting('search_path');
    created_by_pq boolean;
BEGIN
    -- A string could not hold the schema's name, because only double-quoted names are replaced.
    SET LOCAL search_path TO "pq";
    SELECT pg_catalog.obj_description(oid, 'pg_namespace') = 'created by pq' INTO created_by_pq
    FROM pg_catalog.pg_namespace WHERE nspname = pg_catalog.current_schema();
    PERFORM pg_catalog.set_config('search_path', path, true);
    IF created_by_pq THEN
        DROP SCHEMA "pq";
    END IF;
EXCEPTION
    WHEN dependent_objects_still_exist OR insufficient_privilege THEN
        PERFORM pg_catalog.set_config('search_path', path, true);
END
$names$;
