DROP TABLE "pq"."queue_cron";
DROP TABLE "pq"."queue_workers";
DROP TABLE "pq"."queue_paused";
