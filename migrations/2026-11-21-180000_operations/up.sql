-- What operators need: paused queues, workers that can be seen and stopped from anywhere, and periodic jobs.

-- Nobody takes jobs of these queues.
CREATE TABLE "pq"."queue_paused" (
    q_name    text        CONSTRAINT "queue_paused_pkey" PRIMARY KEY,
    paused_at timestamptz NOT NULL DEFAULT statement_timestamp()
);

-- Workers as they last told of themselves. The rows are updated often and are few, so there is room for new
-- versions of them in their own pages.
CREATE TABLE "pq"."queue_workers" (
    id         bigint      CONSTRAINT "queue_workers_pkey" PRIMARY KEY,
    host       text        NOT NULL,
    pid        bigint      NOT NULL,
    supervisor bigint      NOT NULL,
    queues     text[]      NOT NULL,
    threads    integer     NOT NULL,
    started_at timestamptz NOT NULL DEFAULT statement_timestamp(),
    beat_at    timestamptz NOT NULL DEFAULT statement_timestamp(),
    stop       text        CONSTRAINT "queue_workers_stop_check" CHECK (stop IN ('drain', 'finish', 'abort')),
    status     json        NOT NULL
) WITH (fillfactor = 50);

-- Jobs that are put again and again. Whoever fires one holds its row until the jobs are put and the next tick
-- stands in it.
CREATE TABLE "pq"."queue_cron" (
    name       text        CONSTRAINT "queue_cron_pkey" PRIMARY KEY,
    expression text        NOT NULL,
    time_zone  text        NOT NULL DEFAULT 'UTC',
    q_name     text        NOT NULL
        CONSTRAINT "queue_cron_q_name_check" CHECK (octet_length(q_name) BETWEEN 1 AND 1024),
    data       json        NOT NULL,
    priority   integer     NOT NULL DEFAULT 0,
    catch_up   boolean     NOT NULL DEFAULT false,
    paused     boolean     NOT NULL DEFAULT false,
    next_at    timestamptz,
    last_at    timestamptz
);
