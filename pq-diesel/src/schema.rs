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
    }
}

diesel::table! {
    /// The jobs that are never worked again, `pq.queue_archive`.
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
        /// How it ended: `dead`.
        outcome -> Text,
        /// Why.
        error -> Nullable<Text>,
        /// When it ended.
        ended_at -> Timestamptz,
    }
}

diesel::allow_tables_to_appear_in_same_query!(queue, queue_archive);
