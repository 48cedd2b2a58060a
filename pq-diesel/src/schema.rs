//! The default table for diesel's DSL, so that an application can query its queue.

diesel::table! {
    /// The jobs, `pq.queue`.
    pq.queue (id) {
        /// The job's number.
        id -> BigInt,
        /// When it was put.
        enqueued_at -> Timestamptz,
        /// When a Python `pq` took it.
        dequeued_at -> Nullable<Timestamptz>,
        /// When it is wanted.
        expected_at -> Nullable<Timestamptz>,
        /// Not before this time.
        schedule_at -> Nullable<Timestamptz>,
        /// The queue's name.
        q_name -> Text,
        /// The payload.
        data -> Json,
        /// Higher goes first.
        priority -> Integer,
        /// How often the job has been taken.
        attempt -> Integer,
        /// Of the jobs that share one, one is taken at a time.
        serial_key -> Nullable<Text>,
        /// One job with it waits or runs at a time.
        unique_key -> Nullable<Text>,
        /// Why its last attempt failed.
        error -> Nullable<Text>,
    }
}

diesel::table! {
    /// The jobs that have ended and are kept, `pq.queue_archive`.
    pq.queue_archive (id) {
        /// The job's number.
        id -> BigInt,
        /// The queue's name.
        q_name -> Text,
        /// The payload, as it was stored.
        data -> Json,
        /// When it was put.
        enqueued_at -> Timestamptz,
        /// When it was due.
        schedule_at -> Nullable<Timestamptz>,
        /// When it was wanted.
        expected_at -> Nullable<Timestamptz>,
        /// Higher went first.
        priority -> Integer,
        /// How often it was taken.
        attempt -> Integer,
        /// How it ended: `done`, `dead` or `cancelled`.
        outcome -> Text,
        /// Why.
        error -> Nullable<Text>,
        /// When it ended.
        ended_at -> Timestamptz,
        /// Its serialization key.
        serial_key -> Nullable<Text>,
        /// Its unique key.
        unique_key -> Nullable<Text>,
        /// What its handler returned to be kept.
        result -> Nullable<Json>,
    }
}

diesel::allow_tables_to_appear_in_same_query!(queue, queue_archive);
