-- What a put costs the table.

-- Rows with unique keys claim them after they are in and not before: beside a trigger that runs before a row,
-- COPY writes row by row and not page by page, which is a sixth of its time and of its log. The claim is made in
-- the same statement, and refuses it as before.
DROP TRIGGER "queue_claim_unique" ON "pq"."queue";
CREATE TRIGGER "queue_claim_unique" AFTER INSERT ON "pq"."queue"
    FOR EACH ROW
    WHEN (NEW.unique_key IS NOT NULL)
    EXECUTE FUNCTION "pq"."queue_claim_unique"();

-- Tells whoever waits on a queue that a job was put, on the same channels as before. Nearly every statement puts
-- into one queue, so the others are looked for only where there are some. It is called by each put, and a
-- search_path of its own would take as long as the rest of it; so it names every object with its schema.
CREATE OR REPLACE FUNCTION "pq"."queue_notify"() RETURNS trigger
    LANGUAGE plpgsql
AS $function$
DECLARE
    queue pg_catalog.text;
    queues pg_catalog.text[] := ARRAY(SELECT q_name FROM put LIMIT 2);
BEGIN
    IF pg_catalog.cardinality(queues) OPERATOR(pg_catalog.=) 2 THEN
        IF EXISTS (SELECT FROM put WHERE q_name OPERATOR(pg_catalog.<>) queues[1]) THEN
            queues := ARRAY(SELECT DISTINCT q_name FROM put);
        ELSE
            queues := queues[1:1];
        END IF;
    END IF;
    FOREACH queue IN ARRAY queues LOOP
        IF pg_catalog.octet_length(queue) OPERATOR(pg_catalog.<=) 63 THEN
            PERFORM pg_catalog.pg_notify(queue, '');
        ELSE
            PERFORM pg_catalog.pg_notify(pg_catalog.concat('pq_', pg_catalog.md5(queue)), '');
            IF pg_catalog.char_length(queue) OPERATOR(pg_catalog.<=) 63 THEN
                PERFORM pg_catalog.pg_notify(queue::pg_catalog.name::pg_catalog.text, '');
            END IF;
        END IF;
    END LOOP;
    RETURN NULL;
END
$function$;

-- Every entry ends in the job's number, so no two are alike, and a full page need not be searched for such.
ALTER INDEX "pq"."queue_ready" SET (deduplicate_items = off);
ALTER INDEX "pq"."queue_keyed" SET (deduplicate_items = off);
ALTER INDEX "pq"."queue_keyed_line" SET (deduplicate_items = off);

-- Dead rows gather at the head of the line, where each take walks over them; a fifth of the table is too many
-- when millions of jobs are scheduled behind it. Where few pages have dead rows a vacuum leaves the indexes alone,
-- so that it comes often costs little.
ALTER TABLE "pq"."queue" SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
