//! The collector, which measures a table at each scrape.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use pq_diesel::admin::{Counters, Histogram, TaskCounters};
use pq_diesel::metrics::{Metrics, QueueGauges};
use pq_diesel::{LimitedQueue, Pq};
use prometheus_client::encoding::DescriptorEncoder;

use crate::encoding::Writer;

/// Measures a table and a handle at each scrape, for a registry of `prometheus-client`.
///
/// A scrape sends four queries of bounded cost ([`Pq::metrics`]) on one connection of the handle. Concurrent scrapes
/// wait for each other. If the database does not answer, `pq_up` is 0, and only the series of this process are there.
///
/// It blocks, so an asynchronous application encodes its registry on a thread that may block.
pub struct Collector {
    pq: Pq,
    max_queues: usize,
    max_tasks: usize,
    scrapes: Mutex<()>,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("pq", &self.pq).finish_non_exhaustive()
    }
}

impl Collector {
    /// Creates a collector of the table of this handle.
    #[must_use]
    pub fn new(pq: &Pq) -> Self {
        Self { pq: pq.clone(), max_queues: 100, max_tasks: 100, scrapes: Mutex::new(()) }
    }

    /// Sets the largest number of queues that have series of their own. Default: 100.
    ///
    /// Of counters the rest is summed up as the queue `other`. Of gauges it is left out.
    #[must_use]
    pub fn max_queues(mut self, queues: usize) -> Self {
        self.max_queues = queues;
        self
    }

    /// Sets the largest number of tasks of a queue that have series of their own. Default: 100. The rest is summed up
    /// as the task `other`.
    #[must_use]
    pub fn max_tasks(mut self, tasks: usize) -> Self {
        self.max_tasks = tasks;
        self
    }

    fn write(&self, to: &mut Writer<'_>) -> fmt::Result {
        let began = Instant::now();
        let measured = {
            let _one = self.scrapes.lock().unwrap_or_else(PoisonError::into_inner);
            self.pq.metrics(self.max_queues)
        };
        self.write_process(to)?;
        to.gauge("pq_up", "Whether the database could be measured.", truth(measured.is_ok()))?;
        match measured {
            Ok(metrics) => {
                let took = began.elapsed().as_secs_f64();
                to.gauge("pq_scrape_duration_seconds", "Duration of the measurement.", took)?;
                self.write_table(to, metrics)
            }
            Err(error) => {
                tracing::warn!(%error, "table could not be measured");
                Ok(())
            }
        }
    }

    /// Writes what only this process knows.
    fn write_process(&self, to: &mut Writer<'_>) -> fmt::Result {
        if let Some(pool) = self.pq.pool_gauges() {
            to.gauge("pq_pool_size", "Largest number of connections of the pool.", pool.size.into())?;
            let used = pool.open.saturating_sub(pool.idle);
            let states = [("idle", pool.idle), ("used", used)];
            to.gauges(
                "pq_pool_connections",
                "Open connections of the pool.",
                states.map(|(state, count)| ([("state", state)], count.into())),
            )?;
            to.gauge("pq_pool_waiting", "Calls that wait for a connection.", pool.waiting.into())?;
        }
        if let Some(listener) = self.pq.listener_gauges() {
            let connected = truth(listener.is_connected);
            to.gauge("pq_listener_connected", "Whether the listener is connected.", connected)?;
            to.counter("pq_listener_reconnects", "Reconnections of the listener.", listener.reconnects)?;
        }
        Ok(())
    }

    fn write_table(&self, to: &mut Writer<'_>, metrics: Metrics) -> fmt::Result {
        let counters = TaskCounters::merge(metrics.counters, self.max_queues, self.max_tasks);
        write_counters(to, &counters)?;
        if let Some(ids) = metrics.ids {
            to.counter("pq_job_ids", "Ids that were given to jobs.", ids)?;
        }
        to.gauge("pq_dead_tuples", "Dead tuples of the jobs and the leases.", metrics.dead_tuples as f64)?;
        let oldest = metrics.oldest_snapshot.unwrap_or_default().as_secs_f64();
        to.gauge("pq_oldest_snapshot_seconds", "Age of the oldest snapshot of a session.", oldest)?;
        let workers = [("live", metrics.workers_live), ("gone", metrics.workers_gone)];
        to.gauges(
            "pq_workers",
            "Registered workers, with and without a recent heartbeat.",
            workers.map(|(state, count)| ([("state", state)], count as f64)),
        )?;
        to.gauge("pq_steps", "Durable steps that are kept.", metrics.steps as f64)?;
        let suspended = [("sleep", metrics.asleep), ("signal", metrics.awaiting_signals)];
        to.gauges(
            "pq_jobs_suspended",
            "Jobs whose handler sleeps or waits for a signal.",
            suspended.map(|(reason, count)| ([("reason", reason)], count as f64)),
        )?;
        let counted = truth(metrics.queues.is_some() && metrics.limited.is_some());
        write_limits(to, &metrics.limited.unwrap_or_default())?;
        to.gauge("pq_queues_counted", "Whether the jobs could be counted in time.", counted)?;
        metrics.queues.map_or(Ok(()), |queues| write_queues(to, &queues))
    }
}

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.write(&mut Writer::new(encoder))
    }
}

fn truth(is_true: bool) -> f64 {
    if is_true { 1.0 } else { 0.0 }
}

type Count = fn(&Counters) -> u64;
type Times = fn(&Counters) -> Histogram;

fn write_counters(to: &mut Writer<'_>, all: &[TaskCounters]) -> fmt::Result {
    let counts: [(&str, &str, Count); 8] = [
        ("pq_jobs_put", "Jobs that handles of this library have put.", |one| one.put),
        ("pq_jobs_tried", "Jobs whose first attempt has ended.", |one| one.tried),
        ("pq_jobs_done", "Jobs that were completed.", |one| one.done),
        ("pq_jobs_failed", "Attempts that failed.", |one| one.failed),
        ("pq_jobs_retried", "Failed attempts that another one follows.", |one| one.retried),
        ("pq_jobs_dead", "Jobs that were archived as dead.", |one| one.dead),
        ("pq_jobs_cancelled", "Jobs that were archived as cancelled.", |one| one.cancelled),
        ("pq_jobs_lost", "Jobs whose lease expired before they were settled.", |one| one.lost),
    ];
    for (name, help, count) in counts {
        write_counts(to, name, help, all, count)?;
    }
    let times: [(&str, &str, Times); 3] = [
        ("pq_job_wait", "Time from when a job was due to the start of its attempt.", |one| one.wait),
        ("pq_job_run", "Duration of attempts.", |one| one.run),
        ("pq_job_late", "Time from expected_at to the start of the attempt.", |one| one.late),
    ];
    for (name, help, histogram) in times {
        let histograms = all.iter().map(|one| (labels(one), histogram(&one.counters)));
        to.histograms(name, help, histograms)?;
    }
    Ok(())
}

fn write_counts(
    to: &mut Writer<'_>,
    name: &str,
    help: &str,
    all: &[TaskCounters],
    count: Count,
) -> fmt::Result {
    to.counters(name, help, all.iter().map(|one| (labels(one), count(&one.counters))))
}

fn labels(of: &TaskCounters) -> [(&'static str, &str); 2] {
    [("queue", of.queue.as_str()), ("task", of.task.as_str())]
}

fn write_queues(to: &mut Writer<'_>, queues: &[QueueGauges]) -> fmt::Result {
    let states = queues.iter().flat_map(|one| {
        let states = [
            ("ready", one.ready),
            ("blocked", one.blocked),
            ("scheduled", one.scheduled),
            ("running", one.running),
            ("dead", one.dead),
            ("cancelled", one.cancelled),
            ("done", one.done),
        ];
        states.map(|(state, count)| ([("queue", one.queue.as_str()), ("state", state)], count as f64))
    });
    to.gauges("pq_jobs", "Jobs by state.", states)?;
    let of = |value: fn(&QueueGauges) -> f64| {
        queues.iter().map(move |one| ([("queue", one.queue.as_str())], value(one)))
    };
    let estimated = of(|one| truth(one.is_estimated));
    to.gauges("pq_jobs_estimated", "Whether a number of jobs of the queue is an estimate.", estimated)?;
    let oldest = of(|one| one.oldest.unwrap_or_default().as_secs_f64());
    to.gauges("pq_oldest_job_seconds", "Longest time that a job of the queue has been due.", oldest)?;
    let follow_ups = of(|one| one.follow_ups as f64);
    to.gauges("pq_follow_ups", "Jobs of the queue that wait for other jobs.", follow_ups)?;
    to.gauges("pq_queue_paused", "Whether the queue is paused.", of(|one| truth(one.is_paused)))
}

/// Writes what the limits of queues allow, and which jobs wait because of them.
fn write_limits(to: &mut Writer<'_>, limited: &[LimitedQueue]) -> fmt::Result {
    let of = |value: fn(&LimitedQueue) -> Option<f64>| {
        limited.iter().filter_map(move |one| Some(([("queue", one.queue.as_str())], value(one)?)))
    };
    let held = limited.iter().flat_map(|one| {
        one.held_back().map(|(limit, jobs)| ([("queue", one.queue.as_str()), ("limit", limit)], jobs as f64))
    });
    to.gauges("pq_jobs_held_back", "Due jobs that wait because of a limit.", held)?;
    let running = of(|one| one.limits.running.map(f64::from));
    to.gauges("pq_limit_running", "Most jobs of the queue that may run.", running)?;
    to.gauges("pq_limit_tokens", "Tokens of the queue, negative if it owes some.", of(LimitedQueue::tokens))?;
    let burst = of(|one| one.limits.rate.map(|rate| rate.burst.into()));
    to.gauges("pq_limit_burst", "Most tokens that the queue holds.", burst)
}
