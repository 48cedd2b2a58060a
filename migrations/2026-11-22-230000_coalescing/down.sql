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
