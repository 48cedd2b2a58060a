//! What operators see and set, and the periodic jobs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use pq_core::store::{
    Admin, Audit, Batch, Circumstances, Counting, Explain, Limiting, Operations, Schedules, Source,
    TimeTravel, Workers,
};
use pq_core::{
    AuditEntry, AuditRecord, CancelOutcome, Claim, Cron, CronEntry, Filter, Heartbeat, HeartbeatReply, JobId,
    JobRecord, LimitedQueue, Limits, Operation, PausedQueue, QueueCounts, QueueName, StopMode, TaskCounters,
    WorkerId, WorkerInfo,
};
use pq_diesel_async::Error;

use super::{Blocking, Conn};

impl Admin for Blocking {
    fn counts(&self, conn: &mut Conn, queue: &QueueName) -> Result<QueueCounts, Error> {
        wait!(self, conn, |store, sql| store.counts_on(sql, queue))
    }

    fn overview(&self, conn: &mut Conn) -> Result<Vec<QueueCounts>, Error> {
        wait!(self, conn, |store, sql| store.overview_on(sql))
    }

    fn list(&self, conn: &mut Conn, filter: &Filter, count: usize) -> Result<Vec<JobRecord>, Error> {
        wait!(self, conn, |store, sql| store.list_on(sql, filter, count))
    }

    fn find(&self, conn: &mut Conn, queue: &QueueName, id: JobId) -> Result<Option<JobRecord>, Error> {
        wait!(self, conn, |store, sql| store.find_on(sql, queue, id))
    }

    fn cancel(&self, conn: &mut Conn, queue: &QueueName, id: JobId) -> Result<CancelOutcome, Error> {
        wait!(self, conn, |store, sql| store.cancel_on(sql, queue, id))
    }

    fn clear(&self, conn: &mut Conn, queue: &QueueName) -> Result<u64, Error> {
        wait!(self, conn, |store, sql| store.clear_on(sql, queue))
    }

    fn pause(
        &self,
        conn: &mut Conn,
        queue: &QueueName,
        paused: bool,
        by: Option<&str>,
    ) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.pause_on(sql, queue, paused, by))
    }

    fn paused(&self, conn: &mut Conn) -> Result<Vec<PausedQueue>, Error> {
        wait!(self, conn, |store, sql| store.paused_on(sql))
    }

    fn move_jobs(
        &self,
        conn: &mut Conn,
        from: &QueueName,
        to: &QueueName,
        ids: Option<&[JobId]>,
    ) -> Result<u64, Error> {
        wait!(self, conn, |store, sql| store.move_jobs_on(sql, from, to, ids))
    }
}

impl Limiting for Blocking {
    fn limits(&self, conn: &mut Conn, queue: &QueueName) -> Result<Limits, Error> {
        wait!(self, conn, |store, sql| store.limits_on(sql, queue))
    }

    fn set_limits(&self, conn: &mut Conn, queue: &QueueName, limits: &Limits) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.set_limits_on(sql, queue, limits))
    }

    fn correct_cost(&self, conn: &mut Conn, job: &Claim, cost: u32) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.correct_cost_on(sql, job, cost))
    }

    fn limited(&self, conn: &mut Conn, queue: Option<&QueueName>) -> Result<Vec<LimitedQueue>, Error> {
        wait!(self, conn, |store, sql| store.limited_on(sql, queue))
    }
}

impl Explain for Blocking {
    fn circumstances(&self, conn: &mut Conn, id: JobId) -> Result<Circumstances, Error> {
        wait!(self, conn, |store, sql| store.circumstances_on(sql, id))
    }
}

impl Operations for Blocking {
    fn tally(&self, conn: &mut Conn, filter: &Filter, limit: usize) -> Result<u64, Error> {
        wait!(self, conn, |store, sql| store.tally_on(sql, filter, limit))
    }

    fn apply(
        &self,
        conn: &mut Conn,
        operation: &Operation,
        filter: &Filter,
        source: Source,
        after: i64,
        count: usize,
    ) -> Result<Batch, Error> {
        wait!(self, conn, |store, sql| store.apply_on(sql, operation, filter, source, after, count))
    }
}

impl Audit for Blocking {
    fn record(&self, conn: &mut Conn, record: &AuditRecord) -> Result<i64, Error> {
        wait!(self, conn, |store, sql| store.record_on(sql, record))
    }

    fn add_to_record(&self, conn: &mut Conn, entry: i64, count: u64) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.add_to_record_on(sql, entry, count))
    }

    fn audit(&self, conn: &mut Conn, before: Option<i64>, count: usize) -> Result<Vec<AuditEntry>, Error> {
        wait!(self, conn, |store, sql| store.audit_on(sql, before, count))
    }
}

impl Workers for Blocking {
    fn heartbeat(&self, conn: &mut Conn, beat: &Heartbeat) -> Result<HeartbeatReply, Error> {
        wait!(self, conn, |store, sql| store.heartbeat_on(sql, beat))
    }

    fn deregister(&self, conn: &mut Conn, worker: WorkerId) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.deregister_on(sql, worker))
    }

    fn workers(&self, conn: &mut Conn) -> Result<Vec<WorkerInfo>, Error> {
        wait!(self, conn, |store, sql| store.workers_on(sql))
    }

    fn stop_worker(&self, conn: &mut Conn, worker: WorkerId, mode: StopMode) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.stop_worker_on(sql, worker, mode))
    }
}

impl Counting for Blocking {
    fn count(&self, conn: &mut Conn, counted: &[TaskCounters]) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.count_tasks_on(sql, counted))
    }

    fn counted(&self, conn: &mut Conn) -> Result<Vec<TaskCounters>, Error> {
        wait!(self, conn, |store, sql| store.counted_on(sql))
    }
}

impl Schedules for Blocking {
    fn set_cron(&self, conn: &mut Conn, cron: &Cron, next_at: Option<DateTime<Utc>>) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.set_cron_on(sql, cron, next_at))
    }

    fn crons(&self, conn: &mut Conn) -> Result<Vec<CronEntry>, Error> {
        wait!(self, conn, |store, sql| store.crons_on(sql))
    }

    fn remove_cron(&self, conn: &mut Conn, name: &str) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.remove_cron_on(sql, name))
    }

    fn pause_cron(
        &self,
        conn: &mut Conn,
        name: &str,
        paused: bool,
        next_at: Option<DateTime<Utc>>,
        by: Option<&str>,
    ) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.pause_cron_on(sql, name, paused, next_at, by))
    }

    fn due_cron(&self, conn: &mut Conn, after: Option<&str>) -> Result<Option<CronEntry>, Error> {
        wait!(self, conn, |store, sql| store.due_cron_on(sql, after))
    }

    fn advance_cron(
        &self,
        conn: &mut Conn,
        name: &str,
        last_at: Option<DateTime<Utc>>,
        next_at: Option<DateTime<Utc>>,
    ) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.advance_cron_on(sql, name, last_at, next_at))
    }

    fn fail_cron(
        &self,
        conn: &mut Conn,
        name: &str,
        tick: DateTime<Utc>,
        error: &str,
        pause: Duration,
    ) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.fail_cron_on(sql, name, tick, error, pause))
    }

    fn bring_cron_forward(
        &self,
        conn: &mut Conn,
        name: &str,
        tick: DateTime<Utc>,
        earlier: DateTime<Utc>,
    ) -> Result<bool, Error> {
        wait!(self, conn, |store, sql| store.bring_cron_forward_on(sql, name, tick, earlier))
    }
}

impl TimeTravel for Blocking {
    fn advance(&self, conn: &mut Conn, duration: Duration) -> Result<(), Error> {
        wait!(self, conn, |store, sql| store.advance_on(sql, duration))
    }
}
