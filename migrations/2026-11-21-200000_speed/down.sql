ALTER TABLE "pq"."queue" RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold);

ALTER INDEX "pq"."queue_keyed_line" RESET (deduplicate_items);
ALTER INDEX "pq"."queue_keyed" RESET (deduplicate_items);
ALTER INDEX "pq"."queue_ready" RESET (deduplicate_items);

CREATE OR REPLACE FUNCTION "pq"."queue_notify"() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    PERFORM pg_notify(channel, '')
    FROM (SELECT DISTINCT q_name FROM put) AS named,
        LATERAL (
            SELECT CASE WHEN octet_length(q_name) > 63 THEN 'pq_' || md5(q_name) ELSE q_name END AS channel
            UNION
            SELECT q_name::name::text WHERE char_length(q_name) <= 63
        ) AS channels;
    RETURN NULL;
END
$function$;

DROP TRIGGER "queue_claim_unique" ON "pq"."queue";
CREATE TRIGGER "queue_claim_unique" BEFORE INSERT ON "pq"."queue"
    FOR EACH ROW
    WHEN (NEW.unique_key IS NOT NULL)
    EXECUTE FUNCTION "pq"."queue_claim_unique"();
