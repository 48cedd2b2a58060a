-- Writers that tell of puts wait for one another.

-- PostgreSQL commits one transaction at a time of those that have notified, each with a sync of its own. Where many
-- do, a listener takes the lock that stands for the channel and tells for all of them (pq-diesel's listener/coalescing.rs);
-- while somebody has it, a put tells nobody. The lock ends with its session, so nothing is left of a listener that died.
-- A put tries it and lets it go, and holds nobody up. It has a share of a second lock then until it is committed, so
-- that the listener knows when nobody is left of whom nothing was told.
CREATE OR REPLACE FUNCTION "pq"."queue_notify"() RETURNS trigger
    LANGUAGE plpgsql
AS $function$
DECLARE
    queue pg_catalog.text;
    channel pg_catalog.text;
    telling pg_catalog.int8;
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
        channel := queue;
        IF pg_catalog.octet_length(queue) OPERATOR(pg_catalog.>) 63 THEN
            channel := pg_catalog.concat('pq_', pg_catalog.md5(queue));
        END IF;
        telling := pg_catalog.hashtextextended(pg_catalog.concat('pq telling ', channel), TG_RELID::pg_catalog.int8);
        -- In one expression, where no statement's end can come between the two.
        IF (CASE WHEN pg_catalog.pg_try_advisory_lock_shared(telling)
            THEN pg_catalog.pg_advisory_unlock_shared(telling) ELSE false END) THEN
            PERFORM pg_catalog.pg_notify(channel, '');
            IF channel OPERATOR(pg_catalog.<>) queue
                AND pg_catalog.char_length(queue) OPERATOR(pg_catalog.<=) 63 THEN
                PERFORM pg_catalog.pg_notify(queue::pg_catalog.name::pg_catalog.text, '');
            END IF;
        ELSE
            PERFORM pg_catalog.pg_advisory_xact_lock_shared(
                pg_catalog.hashtextextended(pg_catalog.concat('pq putting ', channel), TG_RELID::pg_catalog.int8));
        END IF;
    END LOOP;
    RETURN NULL;
END
$function$;
