DROP TABLE "pq"."queue_archive";
DROP TABLE "pq"."queue";
DROP FUNCTION "pq"."queue_notify"();

-- The schema goes too if the migration made it and nothing else lives in it.
DO $names$
DECLARE
    path text := current_setting('search_path');
    ours boolean;
BEGIN
    SET LOCAL search_path TO "pq";
    SELECT pg_catalog.obj_description(oid, 'pg_namespace') = 'created by pq' INTO ours
        FROM pg_catalog.pg_namespace WHERE nspname = pg_catalog.current_schema();
    PERFORM pg_catalog.set_config('search_path', path, true);
    IF ours THEN
        DROP SCHEMA "pq";
    END IF;
EXCEPTION
    WHEN dependent_objects_still_exist OR insufficient_privilege THEN
        PERFORM pg_catalog.set_config('search_path', path, true);
END
$names$;
