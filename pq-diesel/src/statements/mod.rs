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

/// The statements for one table.
#[derive(Debug)]
pub(crate) struct Statements {
    pub(crate) put_one: ByTrigger,
    pub(crate) put_many: ByTrigger,
    pub(crate) put_unique: Statement,
    pub(crate) draw_ids: Statement,
    pub(crate) draw_ids_quietly: Statement,
    pub(crate) clock: Statement,
    pub(crate) clock_quietly: Statement,
    /// The targets of a COPY.
    pub(crate) copy: String,
    pub(crate) copy_with_ids: String,
    pub(crate) fast_take: FastStatements,
    pub(crate) fast_lease: FastStatements,
    pub(crate) large_payloads: Statement,
    pub(crate) beyond_index: Statement,
    pub(crate) fallbacks: [Sized; 4],
    pub(crate) take_limited: Statement,
    pub(crate) limits: Statement,
    pub(crate) limit_use: Statement,
    pub(crate) limited: Statement,
    pub(crate) set_limits: Statement,
    pub(crate) forget_limits: Statement,
    pub(crate) retake: Statement,
    pub(crate) release_unique: Statement,
    pub(crate) notify: Statement,
    pub(crate) update_held: Statement,
    pub(crate) update_leased: Statement,
    pub(crate) settle_held: Statement,
    pub(crate) complete_lease: Statement,
    pub(crate) complete_limited: Statement,
    pub(crate) settle_leased: Statement,
    pub(crate) extend: Statement,
    pub(crate) maintenance_lock: Statement,
    pub(crate) has_expired_leases: Statement,
    pub(crate) expired_leases: Statement,
    pub(crate) return_expired: Statement,
    pub(crate) forget_settled: Statement,
    pub(crate) steps: Statement,
    pub(crate) keep_step: Statement,
    pub(crate) prepare_wait: Statement,
    pub(crate) await_signal: Statement,
    pub(crate) forget_steps: Statement,
    pub(crate) forget_ended_steps: Statement,
    pub(crate) send_signal: Statement,
    pub(crate) insert_dead: Statement,
    pub(crate) cancel_waiting: Statement,
    pub(crate) cancel_leased: Statement,
    pub(crate) look: Statement,
    pub(crate) await_waiting: Statement,
    pub(crate) await_leased: Statement,
    pub(crate) lock_batch: Statement,
    pub(crate) add_waits: Statement,
    pub(crate) wait_again: Statement,
    pub(crate) ended_waits: Statement,
    pub(crate) lock_follow_ups: Statement,
    pub(crate) mark_waits: Statement,
    pub(crate) cancel_follow_ups: Statement,
    pub(crate) release: Statement,
    pub(crate) reaches: Statement,
    pub(crate) due_workflows: Statement,
    pub(crate) stop_jobs: Statement,
    pub(crate) run_again: Statement,
    pub(crate) wake: Statement,
    pub(crate) forget_waits: Statement,
    pub(crate) predecessors: Statement,
    pub(crate) followers: Statement,
    pub(crate) open_waits: Statement,
    pub(crate) write_notes: Statement,
    pub(crate) write_last_notes: Statement,
    pub(crate) progress: Statement,
    pub(crate) log: Statement,
    pub(crate) forget_notes: Statement,
    pub(crate) archived: Statement,
    pub(crate) requeue: Statement,
    pub(crate) prune: Statement,
    pub(crate) prune_all: Statement,
    pub(crate) clear: Statement,
    pub(crate) now: Statement,
    pub(crate) encoding: Statement,
    pub(crate) pause: Statement,
    pub(crate) paused: Statement,
    pub(crate) resume: Statement,
    pub(crate) overview: Statement,
    pub(crate) list: Statement,
    pub(crate) move_jobs: Statement,
    pub(crate) circumstances: Statement,
    pub(crate) tally: Statement,
    pub(crate) change_waiting: Statement,
    pub(crate) cancel_selected: Statement,
    pub(crate) delete_selected: Statement,
    pub(crate) lock_leases: Statement,
    pub(crate) cancel_running: Statement,
    pub(crate) retry_selected: Statement,
    pub(crate) delete_archived: Statement,
    pub(crate) record: Statement,
    pub(crate) add_to_record: Statement,
    pub(crate) audit: Statement,
    pub(crate) prune_audit: Statement,
    pub(crate) heartbeat: Statement,
    pub(crate) deregister: Statement,
    pub(crate) forget_workers: Statement,
    pub(crate) workers: Statement,
    pub(crate) stop_worker: Statement,
    pub(crate) count: Statement,
    pub(crate) counted: Statement,
    pub(crate) take_counted: Statement,
    pub(crate) gauges: Statement,
    pub(crate) estimates: [Statement; 7],
    pub(crate) database: Statement,
    pub(crate) set_cron: Statement,
    pub(crate) crons: Statement,
    pub(crate) remove_cron: Statement,
    pub(crate) pause_cron: Statement,
    pub(crate) due_cron: Statement,
    pub(crate) advance_cron: Statement,
    pub(crate) fail_cron: Statement,
    pub(crate) bring_cron_forward: Statement,
    pub(crate) advance: Statement,
}

/// Creates a statement without a count.
fn statement(sql: &str, names: &Names) -> Statement {
    Template::parse(sql, names).statement(Limit::Any)
}

impl Statements {
    pub(crate) fn new(table: &Table) -> Self {
        let names = Names::new(table);
        let statement = |sql| statement(sql, &names);
        let [draw_ids, draw_ids_quietly] = put::DRAW_IDS.map(statement);
        let [clock, clock_quietly] = put::CLOCK.map(statement);
        Self {
            put_one: ByTrigger::new(put::ONE, &names),
            put_many: ByTrigger::new(put::MANY, &names),
            put_unique: statement(put::UNIQUE),
            draw_ids,
            draw_ids_quietly,
            clock,
            clock_quietly,
            copy: statement(put::COPY).text(),
            copy_with_ids: statement(put::COPY_WITH_IDS).text(),
            fast_take: FastStatements::for_transaction(&names),
            fast_lease: FastStatements::for_lease(&names),
            large_payloads: statement(take::LARGE_PAYLOADS),
            beyond_index: statement(take::BEYOND_INDEX),
            fallbacks: take::fallbacks(&names),
            take_limited: statement(take::TAKE_LIMITED),
            limits: statement(limits::LIMITS),
            limit_use: statement(limits::LIMIT_USE),
            limited: statement(limits::LIMITED),
            set_limits: statement(limits::SET_LIMITS),
            forget_limits: statement(limits::FORGET_LIMITS),
            retake: statement(take::RETAKE),
            release_unique: statement(take::RELEASE_UNIQUE),
            notify: statement(take::NOTIFY),
            update_held: statement(settle::UPDATE_HELD),
            update_leased: statement(settle::UPDATE_LEASED),
            settle_held: statement(settle::SETTLE_HELD),
            complete_lease: statement(settle::COMPLETE_LEASE),
            complete_limited: statement(settle::COMPLETE_LIMITED),
            settle_leased: statement(settle::SETTLE_LEASED),
            extend: statement(settle::EXTEND),
            maintenance_lock: statement(settle::MAINTENANCE_LOCK),
            has_expired_leases: statement(settle::HAS_EXPIRED_LEASES),
            expired_leases: statement(settle::EXPIRED_LEASES),
            return_expired: statement(settle::RETURN_EXPIRED),
            forget_settled: statement(settle::FORGET_SETTLED),
            steps: statement(steps::STEPS),
            keep_step: statement(steps::KEEP_STEP),
            prepare_wait: statement(steps::PREPARE_WAIT),
            await_signal: statement(steps::AWAIT_SIGNAL),
            forget_steps: statement(steps::FORGET_STEPS),
            forget_ended_steps: statement(steps::FORGET_ENDED),
            send_signal: statement(steps::SEND_SIGNAL),
            insert_dead: statement(archive::INSERT_DEAD),
            cancel_waiting: statement(archive::CANCEL_WAITING),
            cancel_leased: statement(archive::CANCEL_LEASED),
            look: statement(results::LOOK),
            await_waiting: statement(results::AWAIT_WAITING),
            await_leased: statement(results::AWAIT_LEASED),
            lock_batch: statement(follow_ups::LOCK_BATCH),
            add_waits: statement(follow_ups::ADD_WAITS),
            wait_again: statement(follow_ups::WAIT_AGAIN),
            ended_waits: statement(follow_ups::ENDED_WAITS),
            lock_follow_ups: statement(follow_ups::LOCK_FOLLOW_UPS),
            mark_waits: statement(follow_ups::MARK_WAITS),
            cancel_follow_ups: statement(follow_ups::CANCEL_FOLLOW_UPS),
            release: statement(follow_ups::RELEASE),
            reaches: statement(follow_ups::REACHES),
            due_workflows: statement(follow_ups::DUE_WORKFLOWS),
            stop_jobs: statement(follow_ups::STOP_JOBS),
            run_again: statement(follow_ups::RUN_AGAIN),
            wake: statement(follow_ups::WAKE),
            forget_waits: statement(follow_ups::FORGET_WAITS),
            predecessors: statement(follow_ups::PREDECESSORS),
            followers: statement(follow_ups::FOLLOWERS),
            open_waits: statement(follow_ups::OPEN_WAITS),
            write_notes: statement(notes::WRITE_NOTES),
            write_last_notes: statement(notes::WRITE_LAST_NOTES),
            progress: statement(notes::PROGRESS),
            log: statement(notes::LOG),
            forget_notes: statement(notes::FORGET_NOTES),
            archived: statement(archive::ARCHIVED),
            requeue: statement(archive::REQUEUE),
            prune: statement(archive::PRUNE),
            prune_all: statement(archive::PRUNE_ALL),
            clear: statement(archive::CLEAR),
            now: statement(admin::NOW),
            encoding: statement(admin::ENCODING),
            pause: statement(admin::PAUSE),
            paused: statement(admin::PAUSED),
            resume: statement(admin::RESUME),
            overview: statement(admin::OVERVIEW),
            list: statement(admin::LIST),
            move_jobs: statement(admin::MOVE_JOBS),
            circumstances: statement(explain::CIRCUMSTANCES),
            tally: statement(operations::TALLY),
            change_waiting: statement(operations::CHANGE_WAITING),
            cancel_selected: statement(operations::CANCEL_SELECTED),
            delete_selected: statement(operations::DELETE_SELECTED),
            lock_leases: statement(operations::LOCK_LEASES),
            cancel_running: statement(operations::CANCEL_RUNNING),
            retry_selected: statement(operations::RETRY_SELECTED),
            delete_archived: statement(operations::DELETE_ARCHIVED),
            record: statement(audit::RECORD),
            add_to_record: statement(audit::ADD_TO_RECORD),
            audit: statement(audit::AUDIT),
            prune_audit: statement(audit::PRUNE_AUDIT),
            heartbeat: statement(admin::HEARTBEAT),
            deregister: statement(admin::DEREGISTER),
            forget_workers: statement(admin::FORGET_WORKERS),
            workers: statement(admin::WORKERS),
            stop_worker: statement(admin::STOP_WORKER),
            count: statement(counting::COUNT),
            counted: statement(counting::COUNTED),
            take_counted: statement(counting::TAKE_COUNTED),
            gauges: statement(metrics::GAUGES),
            estimates: metrics::ESTIMATES.map(statement),
            database: statement(metrics::DATABASE),
            set_cron: statement(admin::SET_CRON),
            crons: statement(admin::CRONS),
            remove_cron: statement(admin::REMOVE_CRON),
            pause_cron: statement(admin::PAUSE_CRON),
            due_cron: statement(admin::DUE_CRON),
            advance_cron: statement(admin::ADVANCE_CRON),
            fail_cron: statement(admin::FAIL_CRON),
            bring_cron_forward: statement(admin::BRING_CRON_FORWARD),
            advance: statement(time_travel::ADVANCE),
        }
    }
}

#[cfg(test)]
mod tests;
