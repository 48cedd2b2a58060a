//! The SQL of the store: whole statements, each with its order and its locks.
//!
//! A statement is a constant or a file, with placeholders for names such as `{jobs}`, which [`template`] substitutes.
//! Long statements are files in `take/` and `put/`.

mod admin;
mod archive;
mod audit;
mod counting;
mod explain;
mod filter;
mod follow_ups;
mod limits;
mod maintenance;
mod metrics;
mod names;
mod notes;
mod operations;
mod put;
mod results;
mod settle;
mod steps;
mod take;
mod template;
mod time_travel;

use self::names::Names;
use self::put::ByTrigger;
pub(crate) use self::put::Trigger;
pub(crate) use self::take::{FastStatements, Measure, Sized};
use self::template::{Limit, Template};
use crate::prepared::Statement;
use crate::table::Table;

/// Declares [`Statements`]. Each statement that has one text is a field with the constant of its text.
macro_rules! declare_statements {
    ($($name:ident: $sql:path,)*) => {
        /// The statements for one table.
        #[derive(Debug)]
        pub(crate) struct Statements {
            pub(crate) put_one: ByTrigger,
            pub(crate) put_many: ByTrigger,
            /// The targets of a COPY.
            pub(crate) copy: String,
            pub(crate) copy_with_ids: String,
            pub(crate) fast_take: FastStatements,
            pub(crate) fast_lease: FastStatements,
            pub(crate) fallbacks: [Sized; 4],
            $(pub(crate) $name: Statement,)*
        }

        impl Statements {
            pub(crate) fn new(table: &Table) -> Self {
                let names = Names::new(table);
                Self {
                    put_one: ByTrigger::new(put::ONE, &names),
                    put_many: ByTrigger::new(put::MANY, &names),
                    copy: statement(put::COPY, &names).text(),
                    copy_with_ids: statement(put::COPY_WITH_IDS, &names).text(),
                    fast_take: FastStatements::for_transaction(&names),
                    fast_lease: FastStatements::for_lease(&names),
                    fallbacks: take::fallbacks(&names),
                    $($name: statement($sql, &names),)*
                }
            }

            /// Returns the statements that have one text.
            #[cfg(test)]
            fn with_one_text(&self) -> Vec<&Statement> {
                vec![$(&self.$name),*]
            }
        }
    };
}

declare_statements! {
    put_unique: put::UNIQUE,
    prepare_copy: put::PREPARE_COPY,
    large_payloads: take::LARGE_PAYLOADS,
    beyond_index: take::BEYOND_INDEX,
    take_limited: take::TAKE_LIMITED,
    limits: limits::LIMITS,
    limit_use: limits::LIMIT_USE,
    limited: limits::LIMITED,
    set_limits: limits::SET_LIMITS,
    correct_cost: limits::CORRECT_COST,
    forget_limits: limits::FORGET_LIMITS,
    retake: take::RETAKE,
    release_unique: take::RELEASE_UNIQUE,
    notify: take::NOTIFY,
    update_held: settle::UPDATE_HELD,
    update_leased: settle::UPDATE_LEASED,
    settle_held: settle::SETTLE_HELD,
    complete_lease: settle::COMPLETE_LEASE,
    complete_limited: settle::COMPLETE_LIMITED,
    settle_leased: settle::SETTLE_LEASED,
    extend: settle::EXTEND,
    maintenance_lock: maintenance::MAINTENANCE_LOCK,
    needs_maintenance: maintenance::NEEDS_MAINTENANCE,
    expired_leases: maintenance::EXPIRED_LEASES,
    return_expired: maintenance::RETURN_EXPIRED,
    forget_settled: maintenance::FORGET_SETTLED,
    steps: steps::STEPS,
    keep_step: steps::KEEP_STEP,
    prepare_wait: steps::PREPARE_WAIT,
    await_signal: steps::AWAIT_SIGNAL,
    forget_steps: steps::FORGET_STEPS,
    forget_ended_steps: steps::FORGET_ENDED,
    send_signal: steps::SEND_SIGNAL,
    put_workflow: put::WORKFLOW,
    signals: steps::SIGNALS,
    insert_dead: archive::INSERT_DEAD,
    cancel_waiting: archive::CANCEL_WAITING,
    cancel_leased: archive::CANCEL_LEASED,
    look: results::LOOK,
    await_waiting: results::AWAIT_WAITING,
    await_leased: results::AWAIT_LEASED,
    lock_batch: follow_ups::LOCK_BATCH,
    add_waits: follow_ups::ADD_WAITS,
    wait_again: follow_ups::WAIT_AGAIN,
    ended_waits: follow_ups::ENDED_WAITS,
    lock_follow_ups: follow_ups::LOCK_FOLLOW_UPS,
    mark_waits: follow_ups::MARK_WAITS,
    cancel_follow_ups: follow_ups::CANCEL_FOLLOW_UPS,
    release: follow_ups::RELEASE,
    reaches: follow_ups::REACHES,
    due_workflows: follow_ups::DUE_WORKFLOWS,
    run_again: follow_ups::RUN_AGAIN,
    wake: follow_ups::WAKE,
    forget_waits: follow_ups::FORGET_WAITS,
    predecessors: follow_ups::PREDECESSORS,
    followers: follow_ups::FOLLOWERS,
    open_waits: follow_ups::OPEN_WAITS,
    write_notes: notes::WRITE_NOTES,
    write_last_notes: notes::WRITE_LAST_NOTES,
    progress: notes::PROGRESS,
    log: notes::LOG,
    forget_notes: notes::FORGET_NOTES,
    archived: archive::ARCHIVED,
    requeue: archive::REQUEUE,
    prune: archive::PRUNE,
    prune_all: archive::PRUNE_ALL,
    clear: archive::CLEAR,
    now: admin::NOW,
    encoding: admin::ENCODING,
    pause: admin::PAUSE,
    paused: admin::PAUSED,
    resume: admin::RESUME,
    overview: admin::OVERVIEW,
    list: admin::LIST,
    move_jobs: admin::MOVE_JOBS,
    circumstances: explain::CIRCUMSTANCES,
    tally: operations::TALLY,
    change_waiting: operations::CHANGE_WAITING,
    cancel_selected: operations::CANCEL_SELECTED,
    delete_selected: operations::DELETE_SELECTED,
    lock_leases: operations::LOCK_LEASES,
    lock_selected_workflows: operations::LOCK_SELECTED_WORKFLOWS,
    lock_workflows: archive::LOCK_WORKFLOWS,
    cancel_running: operations::CANCEL_RUNNING,
    retry_selected: operations::RETRY_SELECTED,
    delete_archived: operations::DELETE_ARCHIVED,
    record: audit::RECORD,
    add_to_record: audit::ADD_TO_RECORD,
    audit: audit::AUDIT,
    prune_audit: audit::PRUNE_AUDIT,
    heartbeat: admin::HEARTBEAT,
    deregister: admin::DEREGISTER,
    forget_workers: admin::FORGET_WORKERS,
    workers: admin::WORKERS,
    stop_worker: admin::STOP_WORKER,
    count: counting::COUNT,
    counted: counting::COUNTED,
    take_counted: counting::TAKE_COUNTED,
    gauges: metrics::GAUGES,
    estimates: metrics::ESTIMATES,
    database: metrics::DATABASE,
    set_cron: admin::SET_CRON,
    crons: admin::CRONS,
    remove_cron: admin::REMOVE_CRON,
    pause_cron: admin::PAUSE_CRON,
    due_cron: admin::DUE_CRON,
    advance_cron: admin::ADVANCE_CRON,
    fail_cron: admin::FAIL_CRON,
    bring_cron_forward: admin::BRING_CRON_FORWARD,
    advance: time_travel::ADVANCE,
}

/// Creates a statement without a count.
fn statement(sql: &str, names: &Names) -> Statement {
    Template::parse(sql, names).statement(Limit::Any)
}

#[cfg(test)]
mod tests;
