-- What turns the queue into a job system: leases, serialization keys, unique keys, and an archive of
-- whatever ended. Every new column of the live table has a default or is nullable, for Python's pq.

ALTER TABLE "pq"."queue"
    ADD COLUMN serial_key text CONSTRAINT "queue_serial_key_check" CHECK (octet_length(serial_key) BETWEEN 1 AND 1024),
    ADD COLUMN unique_key text CONSTRAINT "queue_unique_key_check" CHECK (octet_length(unique_key) BETWEEN 1 AND 1024),
    ADD COLUMN error text;

-- The line of those that no serialization key can hold up, and beside it that of the others, by key and in
-- order. A busy key with any number of jobs behind it is passed by without looking at them.
DROP INDEX "pq"."queue_ready";
CREATE INDEX "queue_ready" ON "pq"."queue"
    (q_name, (-priority::bigint), (coalesce(expected_at, 'infinity'::timestamptz)), id)
    WHERE dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NULL;
CREATE INDEX "queue_keyed" ON "pq"."queue"
    (q_name, serial_key, (-priority::bigint), (coalesce(expected_at, 'infinity'::timestamptz)), id)
    WHERE dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NOT NULL;
CREATE INDEX "queue_keyed_line" ON "pq"."queue"
    (q_name, (-priority::bigint), (coalesce(expected_at, 'infinity'::timestamptz)), id)
    WHERE dequeued_at IS NULL AND schedule_at IS NULL AND serial_key IS NOT NULL;

-- Jobs under a lease, a row a batch: taking and settling cost one small row for all of them. An array that
-- would hold only nulls is null.
CREATE TABLE "pq"."queue_leases" (
    id          bigint      CONSTRAINT "queue_leases_pkey" PRIMARY KEY,
    q_name      text        NOT NULL,
    lease_until timestamptz NOT NULL,
    size        integer     NOT NULL,
    jobs        bigint[]    NOT NULL,
    data        text[]      NOT NULL,
    enqueued_at timestamptz[] NOT NULL,
    schedule_at timestamptz[],
    expected_at timestamptz[],
    priority    integer[]   NOT NULL,
    attempt     integer[]   NOT NULL,
    serial_key  text[],
    unique_key  text[],
    cancelled   bigint[]    NOT NULL DEFAULT '{}'
);

CREATE SEQUENCE "pq"."queue_lease_tokens";

-- Jobs of a lease that have their verdict while others of it run. Nothing but inserts while the lease
-- lives, so verdicts in open transactions never wait for one another.
CREATE TABLE "pq"."queue_settled" (
    lease bigint NOT NULL,
    job   bigint NOT NULL,
    CONSTRAINT "queue_settled_pkey" PRIMARY KEY (lease, job)
);

-- The serialization keys whose job is held by a lease.
CREATE TABLE "pq"."queue_keys" (
    q_name     text   NOT NULL,
    serial_key text   NOT NULL,
    lease      bigint NOT NULL,
    CONSTRAINT "queue_keys_pkey" PRIMARY KEY (q_name, serial_key)
);

-- The job that has each unique key, and the lease if it runs under one.
CREATE TABLE "pq"."queue_unique" (
    q_name     text   NOT NULL,
    unique_key text   NOT NULL,
    job        bigint NOT NULL,
    lease      bigint,
    CONSTRAINT "queue_unique_pkey" PRIMARY KEY (q_name, unique_key)
);

ALTER TABLE "pq"."queue_archive"
    ADD COLUMN serial_key text,
    ADD COLUMN unique_key text,
    ADD COLUMN result json,
    DROP CONSTRAINT "queue_archive_outcome_check",
    ADD CONSTRAINT "queue_archive_outcome_check" CHECK (outcome IN ('done', 'dead', 'cancelled'));

-- For pruning, whatever the queue.
CREATE INDEX "queue_archive_old" ON "pq"."queue_archive" (outcome, ended_at);

-- Locks the row at `place` for a transaction that may have its serialization key, and says whether it
-- could. Nothing here waits.
--
-- Transactions exclude one another by an advisory lock, which no rollback and no crash leaves behind.
-- Leases that are committed exclude by their row in the table of keys: it is inserted, and not looked
-- for, because a unique index knows what the caller's snapshot may not. For a transaction that takes
-- without a lease the row goes at once. A key that the transaction has already is noted in a setting,
-- since its own lock would let it have the key twice. It is called for each candidate, and a search_path of its
-- own would take longer than the rest of it; it runs with the caller's rights and names every object.
CREATE FUNCTION "pq"."queue_pick"(place tid, name text, key text, lock bigint, new_lease bigint) RETURNS boolean
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

-- Whether the job that has a unique key waits or runs. One that Python's pq has taken does neither that
-- we know of, and one that was cleared by hand is gone.
CREATE FUNCTION "pq"."queue_is_live"(the_job bigint, the_lease bigint) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $names$
BEGIN
    RETURN EXISTS (SELECT FROM "pq"."queue" AS job WHERE job.id = the_job AND job.dequeued_at IS NULL)
        OR EXISTS (SELECT FROM "pq"."queue_leases" AS lease WHERE lease.id = the_lease);
END
$names$;

-- A row with a unique key claims it, whoever inserts it; a job that comes back has it still.
CREATE FUNCTION "pq"."queue_claim_unique"() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $names$
DECLARE
    old record;
BEGIN
    LOOP
        INSERT INTO "pq"."queue_unique" AS had (q_name, unique_key, job) VALUES (NEW.q_name, NEW.unique_key, NEW.id)
        ON CONFLICT (q_name, unique_key) DO UPDATE SET lease = NULL WHERE had.job = NEW.id;
        IF FOUND THEN
            RETURN NEW;
        END IF;
        SELECT had.job, had.lease INTO old FROM "pq"."queue_unique" AS had
            WHERE had.q_name = NEW.q_name AND had.unique_key = NEW.unique_key;
        CONTINUE WHEN NOT FOUND;
        IF "pq"."queue_is_live"(old.job, old.lease) THEN
            RAISE unique_violation USING MESSAGE = 'job ' || old.job || ' of this queue has this unique key';
        END IF;
        DELETE FROM "pq"."queue_unique" AS had
            WHERE had.q_name = NEW.q_name AND had.unique_key = NEW.unique_key
                AND had.job = old.job AND had.lease IS NOT DISTINCT FROM old.lease;
    END LOOP;
END
$names$;

CREATE TRIGGER "queue_claim_unique" BEFORE INSERT ON "pq"."queue"
    FOR EACH ROW
    WHEN (NEW.unique_key IS NOT NULL)
    EXECUTE FUNCTION "pq"."queue_claim_unique"();

-- Puts a job whose unique key may be in use, and says which job is there then and what was done. It waits
-- for another put of the key that has not committed, but never for whoever works on the job.
CREATE FUNCTION "pq"."queue_put_unique"(
    name text, key text, on_conflict text, new_job bigint, new_data json, new_schedule_at timestamptz,
    new_expected_at timestamptz, new_priority integer, new_serial_key text, OUT job bigint, OUT outcome text)
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $names$
DECLARE
    old record;
    waiting "pq"."queue"%ROWTYPE;
BEGIN
    LOOP
        SELECT had.job, had.lease INTO old FROM "pq"."queue_unique" AS had
            WHERE had.q_name = name AND had.unique_key = key;
        IF NOT FOUND THEN
            INSERT INTO "pq"."queue_unique" (q_name, unique_key, job) VALUES (name, key, new_job)
            ON CONFLICT DO NOTHING;
            CONTINUE WHEN NOT FOUND;
            INSERT INTO "pq"."queue"
                (id, q_name, data, schedule_at, expected_at, priority, serial_key, unique_key)
            VALUES (new_job, name, new_data, new_schedule_at, new_expected_at, new_priority, new_serial_key, key);
            job := new_job;
            outcome := 'added';
            RETURN;
        END IF;
        job := old.job;
        IF "pq"."queue_is_live"(old.job, old.lease) THEN
            outcome := 'kept';
            IF on_conflict = 'keep' THEN
                RETURN;
            END IF;
            SELECT * INTO waiting FROM "pq"."queue" AS here
                WHERE here.id = old.job AND here.dequeued_at IS NULL FOR UPDATE SKIP LOCKED;
            IF NOT FOUND THEN
                RETURN;
            END IF;
            -- A new row and not an update: whoever waits is told of it.
            DELETE FROM "pq"."queue" AS here WHERE here.id = old.job;
            waiting.schedule_at := new_schedule_at;
            outcome := 'put_off';
            IF on_conflict = 'replace' THEN
                waiting.data := new_data;
                waiting.expected_at := new_expected_at;
                waiting.priority := new_priority;
                waiting.serial_key := new_serial_key;
                outcome := 'replaced';
            END IF;
            INSERT INTO "pq"."queue" SELECT waiting.*;
            RETURN;
        END IF;
        DELETE FROM "pq"."queue_unique" AS had
            WHERE had.q_name = name AND had.unique_key = key
                AND had.job = old.job AND had.lease IS NOT DISTINCT FROM old.lease;
    END LOOP;
END
$names$;
