//! The cases, a file for each topic.

mod admin;
mod annotations;
mod attempt_log;
mod audit;
mod awaited_calls;
mod behind_held_back;
mod bulk_put;
mod calls;
mod claims;
mod concurrency;
mod costs;
mod counters;
mod counts;
mod cron;
mod explain;
mod failures;
mod fairness;
mod follow_ups;
mod handlers;
mod leases;
mod limits;
mod limits_at_work;
mod logs;
mod operations;
mod order;
mod outcomes;
mod panics;
mod payloads;
mod progress;
mod put;
mod queue_names;
mod rate_limits;
mod results;
mod schedule;
mod serialization_keys;
mod signals;
mod sleeps;
mod status;
mod steps;
mod stop;
mod strict_order;
mod take;
mod tasks;
mod time_travel;
mod transactional_handlers;
mod transactions;
mod unique_keys;
mod unknown_tasks;
mod wait;
mod workers;
mod workflow_retries;
mod workflows;

use crate::Fixture;
use crate::harness::{Harness, Needs};

/// A case: its topic and name, the kinds of access it needs, and the function that runs it.
pub(crate) struct Case<F: Fixture> {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) run: fn(&Harness<F>),
}

impl<F: Fixture> Case<F> {
    /// Returns the name without that of the crate: `wait::a_put_wakes_a_waiter`.
    pub(crate) fn sentence(&self) -> &'static str {
        self.name.rsplit("cases::").next().unwrap_or(self.name)
    }

    /// Returns the file of the case.
    pub(crate) fn topic(&self) -> &'static str {
        self.sentence().split("::").next().unwrap_or_default()
    }
}

/// Defines `cases`, which lists these functions as cases.
///
/// Each name is followed by the kinds of access that the case needs: `Own` or `Both`.
macro_rules! cases {
    ($($name:ident: $needs:ident),* $(,)?) => {
        pub(super) fn cases<F: crate::Fixture>() -> Vec<super::Case<F>> {
            vec![$(super::Case {
                name: concat!(module_path!(), "::", stringify!($name)),
                needs: crate::harness::Needs::$needs,
                run: $name::<F>,
            }),*]
        }
    };
}
use cases;

/// Returns all cases, topic by topic.
pub(crate) fn all<F: Fixture>() -> Vec<Case<F>> {
    let topics: [fn() -> Vec<Case<F>>; 52] = [
        put::cases,
        bulk_put::cases,
        take::cases,
        concurrency::cases,
        order::cases,
        transactions::cases,
        claims::cases,
        wait::cases,
        schedule::cases,
        time_travel::cases,
        payloads::cases,
        costs::cases,
        counters::cases,
        counts::cases,
        queue_names::cases,
        panics::cases,
        leases::cases,
        serialization_keys::cases,
        strict_order::cases,
        unique_keys::cases,
        unknown_tasks::cases,
        limits::cases,
        rate_limits::cases,
        fairness::cases,
        limits_at_work::cases,
        behind_held_back::cases,
        outcomes::cases,
        results::cases,
        progress::cases,
        logs::cases,
        attempt_log::cases,
        tasks::cases,
        calls::cases,
        handlers::cases,
        steps::cases,
        sleeps::cases,
        signals::cases,
        awaited_calls::cases,
        annotations::cases,
        failures::cases,
        transactional_handlers::cases,
        workers::cases,
        stop::cases,
        status::cases,
        admin::cases,
        audit::cases,
        operations::cases,
        explain::cases,
        follow_ups::cases,
        workflows::cases,
        workflow_retries::cases,
        cron::cases,
    ];
    topics.into_iter().flat_map(|topic| topic()).collect()
}
