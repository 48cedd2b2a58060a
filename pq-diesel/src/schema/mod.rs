//! The default tables for diesel's query DSL, for applications that query their jobs or insert them.

mod new_row;

pub use new_row::NewRow;

diesel::table! {
    /// Jobs that have not ended: `pq.queue`.
    pq.queue (id) {
        /// The job's id.
        id -> BigInt,
        /// When the job was put.
        enqueued_at -> Timestamptz,
        /// When a Python `pq` took the job.
        dequeued_at -> Nullable<Timestamptz>,
        /// By when the job should run.
        expected_at -> Nullable<Timestamptz>,
        /// The earliest time to take the job.
        schedule_at -> Nullable<Timestamptz>,
        /// The queue's name.
        q_name -> Text,
        /// The payload.
        data -> Json,
        /// Jobs of higher priority are taken first.
        priority -> Integer,
        /// The number of attempts that were begun and counted.
        attempt -> Integer,
        /// The number of attempts in which the worker died.
        crashes -> Integer,
        /// The maximum number of jobs of the next lease with this job.
        lease_limit -> Nullable<Integer>,
        /// The serialization key: at most one job with it runs at any time.
        serial_key -> Nullable<Text>,
        /// The unique key: at most one job with it waits or runs at any time.
        unique_key -> Nullable<Text>,
        /// The error of the last failed attempt.
        error -> Nullable<Text>,
        /// What was noted when the job was put, such as its trace context.
        annotations -> Nullable<Jsonb>,
        /// The last attempts that failed or were lost.
        attempt_log -> Nullable<Jsonb>,
    }
}

diesel::table! {
    /// Archived jobs: `pq.queue_archive`. The columns `annotations` and `attempt_log` are not here, because diesel
    /// has tables of at most 16 columns by default.
    pq.queue_archive (entry) {
        /// The job's id. Several archived jobs have the same one if the sequence of ids was restarted.
        id -> BigInt,
        /// The queue's name.
        q_name -> Text,
        /// The payload, as it was stored.
        data -> Json,
        /// When the job was put.
        enqueued_at -> Timestamptz,
        /// The earliest time to take the job.
        schedule_at -> Nullable<Timestamptz>,
        /// By when the job should run.
        expected_at -> Nullable<Timestamptz>,
        /// Jobs of higher priority are taken first.
        priority -> Integer,
        /// The number of attempts that were begun and counted.
        attempt -> Integer,
        /// The number of attempts in which the worker died.
        crashes -> Integer,
        /// The state in which the job ended: `done`, `dead` or `cancelled`.
        outcome -> Text,
        /// The error or the reason.
        error -> Nullable<Text>,
        /// When the job ended.
        ended_at -> Timestamptz,
        /// The serialization key.
        serial_key -> Nullable<Text>,
        /// The unique key.
        unique_key -> Nullable<Text>,
        /// The result that the handler returned.
        result -> Nullable<Json>,
        /// The number of the archived job. It is unique.
        entry -> BigInt,
    }
}

diesel::allow_tables_to_appear_in_same_query!(queue, queue_archive);
