DROP INDEX "pq"."queue_scheduled_line";
