//! The number of statements that a store prepares, and their completeness.

use std::collections::BTreeSet;

use super::*;
use crate::Error;

impl Statements {
    /// Returns the texts of all statements that a store of one table can prepare.
    fn texts(&self) -> BTreeSet<String> {
        // A statement that is added to the struct must be added here.
        let Self {
            put_one,
            put_many,
            put_unique,
            prepare_copy,
            copy: _,
            copy_with_ids: _,
            fast_take,
            fast_lease,
            large_payloads,
            beyond_index,
            fallbacks,
            take_limited,
            limits,
            limit_use,
            limited,
            set_limits,
            correct_cost,
            forget_limits,
            retake,
            release_unique,
            notify,
            update_held,
            update_leased,
            settle_held,
            complete_lease,
            complete_limited,
            settle_leased,
            extend,
            maintenance_lock,
            needs_maintenance,
            expired_leases,
            return_expired,
            forget_settled,
            steps,
            keep_step,
            prepare_wait,
            await_signal,
            forget_steps,
            forget_ended_steps,
            send_signal,
            put_workflow,
            signals,
            insert_dead,
            cancel_waiting,
            cancel_leased,
            look,
            await_waiting,
            await_leased,
            lock_batch,
            add_waits,
            wait_again,
            ended_waits,
            lock_follow_ups,
            mark_waits,
            cancel_follow_ups,
            release,
            reaches,
            due_workflows,
            stop_jobs,
            run_again,
            wake,
            forget_waits,
            predecessors,
            followers,
            open_waits,
            write_notes,
            write_last_notes,
            progress,
            log,
            forget_notes,
            archived,
            requeue,
            prune,
            prune_all,
            clear,
            now,
            encoding,
            pause,
            paused,
            resume,
            overview,
            list,
            move_jobs,
            circumstances,
            tally,
            change_waiting,
            cancel_selected,
            delete_selected,
            lock_leases,
            lock_selected_workflows,
            lock_workflows,
            cancel_running,
            retry_selected,
            delete_archived,
            record,
            add_to_record,
            audit,
            prune_audit,
            heartbeat,
            deregister,
            forget_workers,
            workers,
            stop_worker,
            count,
            counted,
            take_counted,
            gauges,
            estimates,
            database,
            set_cron,
            crons,
            remove_cron,
            pause_cron,
            due_cron,
            advance_cron,
            fail_cron,
            bring_cron_forward,
            advance,
        } = self;
        let one_text = [
            put_unique,
            prepare_copy,
            &fast_take.range,
            &fast_lease.range,
            large_payloads,
            beyond_index,
            take_limited,
            limits,
            limit_use,
            limited,
            set_limits,
            correct_cost,
            forget_limits,
            retake,
            release_unique,
            notify,
            update_held,
            update_leased,
            settle_held,
            complete_lease,
            complete_limited,
            settle_leased,
            extend,
            maintenance_lock,
            needs_maintenance,
            expired_leases,
            return_expired,
            forget_settled,
            steps,
            keep_step,
            prepare_wait,
            await_signal,
            forget_steps,
            forget_ended_steps,
            send_signal,
            put_workflow,
            signals,
            insert_dead,
            cancel_waiting,
            cancel_leased,
            look,
            await_waiting,
            await_leased,
            lock_batch,
            add_waits,
            wait_again,
            ended_waits,
            lock_follow_ups,
            mark_waits,
            cancel_follow_ups,
            release,
            reaches,
            due_workflows,
            stop_jobs,
            run_again,
            wake,
            forget_waits,
            predecessors,
            followers,
            open_waits,
            write_notes,
            write_last_notes,
            progress,
            log,
            forget_notes,
            archived,
            requeue,
            prune,
            prune_all,
            clear,
            now,
            encoding,
            pause,
            paused,
            resume,
            overview,
            list,
            move_jobs,
            circumstances,
            tally,
            change_waiting,
            cancel_selected,
            delete_selected,
            lock_leases,
            lock_selected_workflows,
            lock_workflows,
            cancel_running,
            retry_selected,
            delete_archived,
            record,
            add_to_record,
            audit,
            prune_audit,
            heartbeat,
            deregister,
            forget_workers,
            workers,
            stop_worker,
            count,
            counted,
            take_counted,
            gauges,
            estimates,
            database,
            set_cron,
            crons,
            remove_cron,
            pause_cron,
            due_cron,
            advance_cron,
            fail_cron,
            bring_cron_forward,
            advance,
        ];
        let triggers = [Trigger::Fires, Trigger::Off, Trigger::OffForThis];
        let puts = [put_one, put_many].into_iter().flat_map(|put| triggers.map(|trigger| put.of(trigger)));
        let mut texts: BTreeSet<String> = puts.chain(one_text).map(Statement::text).collect();
        texts.extend(self.take_texts());
        let sized = fallbacks.len() + [fast_take, fast_lease].len() * 2;
        #[allow(clippy::print_stdout, reason = "the test reports the numbers")]
        {
            println!(
                "{} texts: {sized} templates of takes in {} sizes, and {} others",
                texts.len(),
                fallbacks[0].texts().len(),
                texts.len() - self.take_texts().len()
            );
        }
        texts
    }

    fn take_texts(&self) -> BTreeSet<String> {
        let fast = [&self.fast_take, &self.fast_lease];
        let fast = fast.into_iter().flat_map(|fast| [&fast.behind_key, &fast.past_keys]);
        fast.chain(&self.fallbacks).flat_map(Sized::texts).collect()
    }
}

/// Each text is planned and kept by each connection. Run with `--nocapture` to see the numbers.
#[test]
fn a_table_has_a_bounded_number_of_statements() {
    let statements = Statements::new(&Table::default());
    assert_eq!(statements.take_texts().len(), 80);
    assert_eq!(statements.texts().len(), 199);
}

#[test]
fn every_placeholder_is_substituted() {
    let statements = Statements::new(&Table::default());
    let targets = [statements.copy.clone(), statements.copy_with_ids.clone()];
    for text in statements.texts().into_iter().chain(targets) {
        let mut rest = text.as_str();
        while let Some(at) = rest.find('{') {
            rest = &rest[at + 1..];
            assert!(rest.starts_with('}'), "{text}");
        }
        assert!(!text.contains("--") && !text.contains('\n'), "{text}");
    }
}

/// A hostile name must not be parsed again when later placeholders are substituted.
#[test]
fn names_that_look_like_placeholders_are_only_names() -> Result<(), Error> {
    let texts = |table: &Table| Statements::new(table).texts();
    let plain = Table::new("s", "t")?;
    let hostile = Table::new("$3 {leases} -- ", "{count} $2 '")?;
    let renamed = |text: String| {
        // Outside of names no text contains these.
        text.replace("$3 {leases} -- ", "s").replace("{count} $2 ''", "t").replace("{count} $2 '", "t")
    };
    assert_eq!(texts(&hostile).into_iter().map(renamed).collect::<BTreeSet<_>>(), texts(&plain));
    Ok(())
}
